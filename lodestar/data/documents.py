"""Text to pretrain on: a plain text file, or what the demonstrations say."""

from __future__ import annotations

import random
from pathlib import Path

from lodestar.config import DataConfig
from lodestar.data.corpus import Corpus, Split
from lodestar.errors import DataError
from lodestar.files import open_text

DOCUMENT_CHARACTERS = 2000
"""Paragraphs of a text file are gathered into documents of about this size."""


def documents(config: DataConfig, corpus: Corpus, splits: dict[str, Split], seed: int) -> dict[str, list[str]]:
    """Documents of the splits train and held_out.

    Raises:
        DataError: ``data.text`` is missing, unreadable or too small to hold anything out.
    """
    if config.text is None:
        texts = [(row.family, joined(row.record.prompt, row.record.completion)) for row in corpus.demonstrations]
        return {split: [text for family, text in texts if splits[family] == split] for split in ("train", "held_out")}
    path = Path(config.root or ".") / config.text
    pieces = _gather(_read(path))
    held_out = round(config.held_out_fraction * len(pieces))
    if not 0 < held_out < len(pieces):
        raise DataError(path, f"has only {len(pieces)} documents of {DOCUMENT_CHARACTERS} characters to pretrain on")
    random.Random(f"{seed}/documents").shuffle(pieces)
    return {"train": pieces[held_out:], "held_out": pieces[:held_out]}


def joined(prompt: str, completion: str) -> str:
    """Prompt and completion as running text: with a space between where neither side brings one."""
    touching = prompt[-1:].isspace() or completion[:1].isspace()
    return prompt + ("" if touching else " ") + completion


def _read(path: Path) -> str:
    with open_text(path, missing="no such file; data.text is taken below data.root") as file:
        return file.read()


def _gather(text: str) -> list[str]:
    """Whole paragraphs, together until they reach the size."""
    pieces: list[str] = []
    paragraphs: list[str] = []
    for paragraph in text.split("\n\n"):
        paragraphs.append(paragraph)
        if sum(map(len, paragraphs)) >= DOCUMENT_CHARACTERS:
            pieces.append("\n\n".join(paragraphs))
            paragraphs = []
    if any(paragraph.strip() for paragraph in paragraphs):
        pieces.append("\n\n".join(paragraphs))
    return pieces
