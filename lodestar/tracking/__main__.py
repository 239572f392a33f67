"""The trackers' process: ``python -m lodestar.tracking RUN`` follows a run until its standard input ends."""

from __future__ import annotations

import logging
import select
import sys
from pathlib import Path

from lodestar.recipe.folder import RunFolder
from lodestar.tracking.follow import Follower

LOOK_SECONDS = 1.0


def main(root: Path) -> None:
    """Until whoever started it closes the pipe, or is gone."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    follower = Follower(RunFolder.open(root))
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        follower.look()
    follower.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
