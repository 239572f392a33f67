"""Reads preference data, demonstrations and prompts from files: one's own (schema.py has the rows) or published ones
(lodestar.data.formats)."""

from __future__ import annotations

from pathlib import Path

from lodestar.config import DataConfig
from lodestar.data.columns import Reading
from lodestar.data.corpus import Corpus, preferred
from lodestar.data.feedback import Found, read_demonstration_file, read_file, read_prompt_file
from lodestar.data.files import BadRows
from lodestar.data.objects import ENDINGS, data_files
from lodestar.data.schema import Chat, Example
from lodestar.errors import DataError
from lodestar.records import Feedback


def reading_of(data: DataConfig, *, functions: bool) -> Reading:
    """How a run reads its files. ``functions``: the reward is made of some, which are given the columns that nothing
    else reads: these are not lost, and strict allows them."""
    return Reading(
        columns=data.columns,
        ignore=frozenset(data.ignore),
        strings=data.strings,
        all_turns=data.all_turns,
        strict=data.strict and not functions,
    )


def read_files(config: DataConfig, chat: Chat, bad: BadRows, reading: Reading) -> Corpus:
    """The corpus of ``data.root`` and ``data.files``; without demonstrations, the preferred completions serve.

    Raises:
        DataError: no such folder or file, no files there, a file without a usable row.
    """
    assert config.root is not None, "the configuration requires data.root"
    root = Path(config.root)
    if not root.is_dir():
        raise DataError(root, "no such folder; set data.root to the folder of the files")
    demonstrations, prompts, text = _apart(config)
    apart = {demonstrations, prompts, text}
    files = [root / name for name in config.files] or [path for path in data_files(root) if path not in apart]
    if not files and demonstrations is None and prompts is None:
        raise DataError(root, f"holds no file ending in {', '.join(ENDINGS)} (or .gz of a text one); name one in data")
    corpus = gathered([read_file(path, chat, bad, reading) for path in files if path not in apart])
    if demonstrations is not None:
        corpus.demonstrations[:] = read_demonstration_file(demonstrations, chat, bad, reading)
    if prompts is not None:
        corpus.prompts[:] = read_prompt_file(prompts, chat, bad, reading)
    return corpus


def corpus_files(config: DataConfig) -> list[Path]:
    """Every file that read_files reads, those that are not there left out."""
    root = Path(str(config.root))
    files = [root / name for name in config.files] or (data_files(root) if root.is_dir() else [])
    return [path for path in dict.fromkeys([*files, *filter(None, _apart(config)[:2])]) if path.is_file()]


def _apart(config: DataConfig) -> tuple[Path | None, Path | None, Path | None]:
    """The files of demonstrations, prompts and text, where they are named."""
    root = Path(str(config.root))
    one, other, third = (root / name if name else None for name in (config.demonstrations, config.prompts, config.text))
    return one, other, third


def gathered(files: list[Found]) -> Corpus:
    """All files as one corpus; where no file shows replies, those that feedback prefers are shown."""
    feedback: list[Example[Feedback]] = [row for found in files for row in found.feedback]
    shown = [row for found in files for row in found.demonstrations]
    return Corpus(shown or preferred(feedback), feedback, [row for found in files for row in found.prompts])
