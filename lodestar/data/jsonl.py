"""Reads preference data and demonstrations from files: one's own (schema.py has the rows) or a published set's."""

from __future__ import annotations

from pathlib import Path

from lodestar.config import DataConfig
from lodestar.data.chat import ChatFormat
from lodestar.data.corpus import Corpus, preferred
from lodestar.data.feedback import read_feedback_file
from lodestar.data.files import BadRows
from lodestar.data.objects import ENDINGS, stem
from lodestar.data.schema import Chat, Example, parse_demonstration
from lodestar.errors import DataError
from lodestar.files import numbered_rows
from lodestar.records import Demonstration


def read_files(config: DataConfig, chat: ChatFormat, bad: BadRows) -> Corpus:
    """The corpus of ``data.root`` and ``data.files``; without demonstrations, the preferred completions serve.

    Raises:
        DataError: no such folder or file, no comparison files there, a file without a usable row.
    """
    assert config.root is not None, "the configuration requires data.root"
    root = Path(config.root)
    if not root.is_dir():
        raise DataError(root, "no such folder; set data.root to the folder of the .jsonl files")
    demonstrations = root / config.demonstrations if config.demonstrations else None
    files = [root / name for name in config.files] or sorted(
        path for ending in ENDINGS for path in (*root.glob(f"*{ending}"), *root.glob(f"*{ending}.gz"))
    )
    feedback = [row for path in files if path != demonstrations for row in read_feedback_file(path, chat, bad)]
    if not feedback:
        raise DataError(
            root, "holds no .jsonl, .json or .csv file (or .gz of one) of comparisons; name it in data.files"
        )
    if demonstrations is None:
        return Corpus(preferred(feedback), feedback)
    return Corpus(read_demonstration_file(demonstrations, chat, bad), feedback)


def read_demonstration_file(path: Path, chat: Chat, bad: BadRows) -> list[Example[Demonstration]]:
    """Every usable demonstration of a JSONL file, in order.

    Raises:
        DataError: the file cannot be read or has no usable row; a bad row when strict.
    """
    rows, before = [], len(bad.errors)
    for number, row in numbered_rows(path, bad.add):
        try:
            rows.append(parse_demonstration({"id": f"{stem(path)}:{number}", **row}, chat))
        except ValueError as error:
            bad.add(DataError(path, str(error), line=number))
    bad.refuse_empty(path, rows, before)
    return rows
