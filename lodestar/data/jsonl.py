"""Reads preference data and demonstrations from JSONL files: one's own, or Anthropic HH's. schema.py has the rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lodestar.config import DataConfig
from lodestar.data.chat import ChatFormat
from lodestar.data.corpus import Corpus, preferred
from lodestar.data.files import BadRows, read_jsonl
from lodestar.data.schema import Example, parse_comparison, parse_demonstration
from lodestar.errors import DataError

Record = TypeVar("Record")


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
    files = [root / name for name in config.files] or sorted([*root.glob("*.jsonl"), *root.glob("*.jsonl.gz")])
    comparisons = [row for path in files if path != demonstrations for row in _read(path, parse_comparison, chat, bad)]
    if not comparisons:
        raise DataError(root, "holds no *.jsonl or *.jsonl.gz file of comparisons; name them in data.files")
    if demonstrations is None:
        return Corpus(preferred(comparisons), comparisons)
    return Corpus(_read(demonstrations, parse_demonstration, chat, bad), comparisons)


def _read(
    path: Path,
    parse: Callable[[dict[str, Any], ChatFormat], Example[Record]],
    chat: ChatFormat,
    bad: BadRows,
) -> list[Example[Record]]:
    rows, before = [], len(bad.errors)
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    for number, row in read_jsonl(path, bad):
        try:
            rows.append(parse({"id": f"{name}:{number}", **row}, chat))
        except ValueError as error:
            bad.add(DataError(path, str(error), line=number))
    if not rows:
        refused = bad.errors[before:]
        raise DataError(path, f"has no usable row; the first was refused: {refused[0]}" if refused else "has no rows")
    return rows
