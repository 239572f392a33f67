"""Tokenizers that cannot corrupt training in silence: PAD exists and is not EOS."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lodestar.errors import ModelError

logger = logging.getLogger(__name__)

PAD_HINTS = ("pad", "reserved", "unused", "extra")
"""Words in the names of special tokens that no text uses, the likeliest first."""


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder or hub id and make sure that it has EOS, and a PAD that is not EOS.

    Where PAD is missing or equals EOS, an unused special token is made PAD and a warning is logged. Training with
    PAD = EOS would mask the very token that carries the reward.

    Raises:
        ModelError: there is no tokenizer, it has no EOS, or no special token is free to be PAD.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: no usable tokenizer there ({_first_line(error)})") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no EOS token; responses could never end, set eos_token in it")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        _assign_pad(tokenizer, path)
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


def _assign_pad(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    problem = "has no PAD token" if tokenizer.pad_token_id is None else "uses EOS as PAD"
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    free = [
        token.content
        for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token_id not in taken
    ]
    candidates = [token for hint in PAD_HINTS for token in free if hint in token.lower()]
    if not candidates:
        raise ModelError(
            f"{path}: the tokenizer {problem} and has no unused special token to take its place; "
            "add one (tokenizer.add_special_tokens({'pad_token': '<pad>'}), resize the model's embedding, save both)"
        )
    tokenizer.pad_token = candidates[0]
    logger.warning("%s: the tokenizer %s; %s is PAD from now on", path, problem, candidates[0])


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex sha256 of what gives token ids their meaning: vocabulary, merges and special tokens.

    Equal before saving and after loading. PAD is left out: it is never computed on, and the policy's and a reward
    model's copy of one tokenizer may have got it in different ways.
    """
    merges: list[object] = []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        merges = json.loads(backend.to_str())["model"].get("merges", [])
    meaning = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "merges": [merge if isinstance(merge, str) else " ".join(map(str, merge)) for merge in merges],  # type: ignore[call-overload]
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id],
    }
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
