"""Reads preference data from the Hugging Face hub, or from a local folder that the ``datasets`` library can load.

Columns are the conventional ones (prompt, chosen, rejected, messages, completion, label; see schema.py). A row of a
data set is named ``root[configuration]:row``, counted from 0 as the hub's viewer does.
"""

from __future__ import annotations

from typing import Any

from lodestar.config import DataConfig
from lodestar.data.chat import ChatFormat
from lodestar.data.corpus import Corpus, preferred
from lodestar.data.files import BadRows
from lodestar.data.schema import Example, form_of, parse_demonstration, parse_feedback
from lodestar.errors import DataError
from lodestar.records import Demonstration, Feedback


def read_hub(config: DataConfig, chat: ChatFormat, bad: BadRows) -> Corpus:
    """The training split of ``data.root``, of each configuration (data_dir) in ``data.files``.

    Raises:
        DataError: the ``datasets`` library is not installed, the data set cannot be loaded, or no row is usable.
    """
    feedback: list[Example[Feedback]] = []
    demonstrations: list[Example[Demonstration]] = []
    for directory in config.files or (None,):
        name = f"{config.root}[{directory}]" if directory else str(config.root)
        for number, row in enumerate(_load(str(config.root), directory, name)):
            present = {"id": f"{name}:{number}"} | {key: value for key, value in row.items() if value is not None}
            try:
                if form_of(present) == "demonstration":
                    demonstrations.append(parse_demonstration(present, chat))
                else:
                    feedback.append(parse_feedback({"subset": name} | present, chat))
            except ValueError as error:
                bad.add(DataError(name, str(error), line=number))
    if not feedback:
        first = f"; the first row was refused: {bad.errors[0]}" if bad.errors else ""
        raise DataError(str(config.root), f"has no row with chosen and rejected{first}")
    return Corpus(demonstrations or preferred(feedback), feedback)


def _load(root: str, directory: str | None, name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(name, "data.source hub needs the datasets library: pip install 'lodestar-rlhf[hub]'") from error
    try:
        splits = datasets.load_dataset(root, data_dir=directory)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(name, f"cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return splits["train"] if "train" in splits else next(iter(splits.values()))
