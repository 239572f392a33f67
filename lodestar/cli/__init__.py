"""The command line. Heavy imports come after parsing: ``lodestar --help`` loads neither torch nor gRPC."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``lodestar`` script: an expected error is one sentence on stderr and its exit code."""
    from lodestar.cli.app import app, options
    from lodestar.cores import spin_shortly
    from lodestar.errors import LodestarError

    spin_shortly()
    try:
        app()
    except LodestarError as error:
        if options.debug:
            raise
        _say(str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        from lodestar.files import full_disk

        full = full_disk(error)
        if full is None or options.debug:
            raise
        _say(str(full))
        sys.exit(full.exit_code)


def _say(sentence: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), (sentence, "red")))
