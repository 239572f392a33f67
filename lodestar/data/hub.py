"""Reads preference data from the Hugging Face hub, or from a local folder that the ``datasets`` library can load.

Columns are those of any format that a file may have (lodestar.data.formats, schema.py). A row of a data set is named
``root[configuration]:row``, counted from 0 as the hub's viewer does.
"""

from __future__ import annotations

from typing import Any

from lodestar.config import DataConfig
from lodestar.data.chat import ChatFormat
from lodestar.data.columns import Reading
from lodestar.data.corpus import Corpus
from lodestar.data.feedback import read_rows
from lodestar.data.files import BadRows
from lodestar.data.jsonl import gathered
from lodestar.errors import DataError


def read_hub(config: DataConfig, chat: ChatFormat, bad: BadRows, reading: Reading) -> Corpus:
    """The training split of ``data.root``, of each configuration (data_dir) in ``data.files``.

    Raises:
        DataError: the ``datasets`` library is not installed, the data set cannot be loaded, or no row is usable.
    """
    found = []
    for directory in config.files or (None,):
        name = f"{config.root}[{directory}]" if directory else str(config.root)
        rows = (
            (number, {key: value for key, value in row.items() if value is not None})
            for number, row in enumerate(_load(str(config.root), directory, name))
        )
        found.append(read_rows(name, rows, chat, bad, reading, name))
    return gathered(found)


def _load(root: str, directory: str | None, name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(name, "data.source hub needs the datasets library: pip install 'datasets>=3'") from error
    try:
        splits = datasets.load_dataset(root, data_dir=directory)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(name, f"cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return splits["train"] if "train" in splits else next(iter(splits.values()))
