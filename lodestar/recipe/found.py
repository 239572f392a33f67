"""What a folder has to begin a run with: models, and files of rows with what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lodestar.errors import DataError
from lodestar.files import read_json

DEPTH = 3
"""Folders below the one that is looked at, itself included."""
LOOKED_AT = 500
"""Rows of a file that are read to know what it holds."""
Holds = Literal["feedback", "demonstrations", "prompts"]
_SKIPPED = {"runs", "node_modules", "__pycache__"}


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A folder with a config.json: ``FoundModel(Path("my-model"), "LlamaForCausalLM", scores=False, …)``."""

    path: Path
    architecture: str
    scores: bool
    """A sequence classifier: a reward model."""
    context_tokens: int | None
    chats: bool
    """Its tokenizer has a chat template of its own."""


@dataclass(frozen=True, slots=True)
class FoundRows:
    """A file of rows: ``FoundRows(Path("rows/votes.jsonl"), "feedback", "plain", 500)``."""

    path: Path
    holds: Holds
    format: str
    rows: int
    """Of the first LOOKED_AT."""


@dataclass(slots=True)
class Finds:
    """All of a folder."""

    models: list[FoundModel] = field(default_factory=list)
    rows: list[FoundRows] = field(default_factory=list)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    """Files that look like rows and cannot be read, with the reason."""

    def of(self, holds: Holds) -> list[FoundRows]:
        """The files that hold something."""
        return [one for one in self.rows if one.holds == holds]


def look(folder: Path) -> Finds:
    """Looks through a folder, hidden ones and ``runs`` left out.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(folder, "no such folder")
    found = Finds()
    for place in _folders(folder, DEPTH):
        if (place / "config.json").is_file():
            model = _model(place)
            if model is not None:
                found.models.append(model)
                continue
        _read_rows(place, found)
    return found


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth <= 1 or (folder / "config.json").is_file():
        return
    for below in sorted(folder.iterdir()):
        if below.is_dir() and not below.name.startswith(".") and below.name not in _SKIPPED:
            yield from _folders(below, depth - 1)


def _model(folder: Path) -> FoundModel | None:
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        return None
    architecture = next(iter(config.get("architectures") or ()), config["model_type"])
    context: Any = next((config[name] for name in ("max_position_embeddings", "n_positions") if name in config), None)
    told = folder / "tokenizer_config.json"
    chats = (folder / "chat_template.jinja").exists() or (told.exists() and "chat_template" in read_json(told))
    return FoundModel(folder, architecture, "SequenceClassification" in architecture, context, chats)


def _read_rows(folder: Path, found: Finds) -> None:
    from lodestar.data.feedback import read_rows
    from lodestar.data.files import BadRows
    from lodestar.data.hh import Dialogues
    from lodestar.data.objects import data_files, read_objects

    for path in data_files(folder):
        bad = BadRows(strict=False)
        try:
            rows = read_rows(path, islice(read_objects(path, bad), LOOKED_AT), Dialogues(), bad)
        except DataError as error:
            found.refused.append((path, str(error)))
            continue
        kinds: list[tuple[Holds, int]] = [
            ("feedback", len(rows.feedback)),
            ("demonstrations", len(rows.demonstrations)),
            ("prompts", len(rows.prompts)),
        ]
        holds, count = max(kinds, key=lambda kind: kind[1])
        found.rows.append(FoundRows(path, holds, rows.format.name, count))
