"""Tokenizers that cannot corrupt training in silence: PAD exists and is not EOS, and every id has a row."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lodestar.data.control import Control
from lodestar.data.rows import ending
from lodestar.errors import ModelError

logger = logging.getLogger(__name__)

PAD_HINTS = ("pad", "reserved", "unused", "extra")
"""Words in the names of special tokens that no text uses, the likeliest first."""
PAD = "<|pad|>"
"""What PAD is called where nothing can take its place."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids of a tokenizer: ``Vocabulary(size=50_257, tokens=50_258, pad_id=50_257)`` is GPT-2's with a PAD."""

    size: int
    """Ids below it have text, but for ``holes``; PAD and control tokens behind all others are not counted."""
    tokens: int
    """Rows that an embedding of all ids needs."""
    pad_id: int | None = None
    holes: tuple[int, ...] = ()
    """Ids below ``size`` that are no token, or a control token (lodestar.data.control)."""

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """As the tokenizer spells its ids out."""
        ids = set(tokenizer.get_vocab().values())
        pad = tokenizer.pad_token_id
        tokens = max(ids) + 1
        text = ids - set(Control.of(tokenizer).ids)
        size = max(text) + 1
        if pad == size - 1 and len(text) > 1:
            size = max(text - {pad}) + 1
        holes = tuple(sorted(set(range(size)) - text)) if len(text) < tokens else ()
        return Vocabulary(size, tokens, pad if isinstance(pad, int) else None, holes)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder or hub id and make sure that it has EOS, and a PAD that is not EOS.

    Where PAD is missing or equals EOS, an unused special token is made PAD, or a token of its own behind all others
    (lodestar.model.loading gives it a row), and a warning is logged. Training with PAD = EOS would mask the very token
    that carries the reward.

    Raises:
        ModelError: there is no tokenizer, it has no EOS, or it has ids that the model beside it has no rows for.
    """
    tokenizer = load_encoder_tokenizer(path)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no EOS token; responses could never end, set eos_token in it")
    try:
        Control.of(tokenizer)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        _assign_pad(tokenizer, path)
    rows = _rows_of_config(Path(path))
    if rows is not None:
        check_rows(Vocabulary.of(tokenizer), rows, path)
    return tokenizer


def load_encoder_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of an encoder, which needs no EOS: it marks its own beginnings and ends.

    Raises:
        ModelError: there is no tokenizer.
    """
    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: no usable tokenizer there ({_first_line(error)})") from error


def find_vocabulary(path: str | Path) -> Vocabulary | None:
    """The ids of the tokenizer that lies beside a model; None where there is no usable one."""
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        return None
    previous = logger.level
    logger.setLevel(logging.ERROR)  # who asks for the tokenizer itself is warned
    try:
        return Vocabulary.of(load_tokenizer(path))
    except ModelError as error:
        if "no rows" in str(error):
            raise
        return None
    finally:
        logger.setLevel(previous)


def check_rows(vocabulary: Vocabulary, rows: int, path: str | Path) -> None:
    """Refuse a tokenizer with ids beyond the embedding; PAD alone may lie there.

    Raises:
        ModelError: naming both sizes.
    """
    if vocabulary.size > rows:
        raise ModelError(
            f"{path}: the tokenizer has ids up to {vocabulary.size - 1}, and the model's vocabulary is {rows}: "
            "there are no rows for the others; call resize_token_embeddings(len(tokenizer)) and save both"
        )


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a response: the generation config's, the tokenizer's, and the last of how its chat template
    ends a turn, which SFT taught.

    A model that scores has no generation config; Lodestar's own say the ids of their language model in config.json.
    """
    says = getattr(model, "generation_config", None) or model.config.get_text_config()
    own = {*ids_of(getattr(says, "eos_token_id", None)), *ids_of(tokenizer.eos_token_id)}
    return frozenset({*own, ending(tokenizer).stop[-1]})


def check_special_ids(model: Any, path: str | Path) -> None:
    """Refuse PAD, BOS and EOS ids that are no token of the model.

    Raises:
        ModelError: naming the field of config.json or generation_config.json.
    """
    shape = model.config.get_text_config()
    generation = getattr(model, "generation_config", None)
    check_ids_of(shape, shape.vocab_size, f"{path}: config.json")
    if generation is not None:
        check_ids_of(generation, shape.vocab_size, f"{path}: generation_config.json")


def check_ids_of(config: Any, vocab_size: int, where: str) -> None:
    """As check_special_ids for one configuration."""
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        for token in ids_of(getattr(config, name, None)):
            if token >= vocab_size or (token < 0 and name != "pad_token_id"):
                raise ModelError(
                    f"{where}: {name} is {token}, and the model's vocabulary ends at {vocab_size - 1}; "
                    "correct the id, or resize the embedding"
                )


def ids_of(value: Any) -> Iterable[int]:
    """The ids of a configuration's field, which may be none, one or a list."""
    return () if value is None else value if isinstance(value, (list, tuple)) else (value,)


def _rows_of_config(folder: Path) -> int | None:
    """The vocabulary size in a local folder's config.json, where there is one that says it."""
    try:
        described = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    for part in (described, described.get("text_config") or {}):
        if isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def _assign_pad(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    problem = "has no PAD token" if tokenizer.pad_token_id is None else "uses EOS as PAD"
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    free = [
        token.content
        for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token_id not in taken
    ]
    candidates = [token for hint in PAD_HINTS for token in free if hint in token.lower()]
    if candidates:
        tokenizer.pad_token = candidates[0]
    else:
        tokenizer.add_special_tokens({"pad_token": PAD})
    logger.warning("%s: the tokenizer %s; %s is PAD from now on", path, problem, tokenizer.pad_token)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex sha256 of what gives token ids their meaning: vocabulary, merges and special tokens.

    Equal before saving and after loading. PAD is left out: it is never computed on, and the policy's and a reward
    model's copy of one tokenizer may have got it in different ways.
    """
    merges: list[object] = []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        merges = json.loads(backend.to_str())["model"].get("merges", [])
    vocabulary = Vocabulary.of(tokenizer)
    meaning: dict[str, object] = {
        "vocabulary": sorted(item for item in tokenizer.get_vocab().items() if item[1] < vocabulary.size),
        "merges": [merge if isinstance(merge, str) else " ".join(map(str, merge)) for merge in merges],  # type: ignore[call-overload]
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id],
    }
    control = Control.of(tokenizer)
    if control.ids:  # their ids are no text, and before every prompt
        meaning["control"] = [control.names, control.ids]
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
