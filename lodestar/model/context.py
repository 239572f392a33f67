"""The longest sequence that a model takes: one rule for engine, reference, reward, learner and data."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from lodestar.errors import InvalidArgument

logger = logging.getLogger(__name__)

NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""What configurations call the number of positions; the first that says something counts."""


UNLIMITED = 1 << 30
"""What a model that does not say takes, for fields that want a number."""


def context_tokens(config: Any) -> int | None:
    """Positions that a model knows by its configuration; None when it does not say.

    LongRoPE turns all rows of a call by other frequencies once one of them is beyond the length of pretraining, dynamic
    RoPE once one is beyond max_position_embeddings; up to there a sequence does not depend on its batch.
    """
    shape = config.get_text_config()
    known = [next((getattr(shape, name) for name in NAMES if getattr(shape, name, None)), None)]
    known += [
        rope.get("original_max_position_embeddings") for rope in _ropes(shape) if rope.get("rope_type") == "longrope"
    ]
    return min((int(tokens) for tokens in known if tokens), default=None)


def ends_hard(config: Any) -> bool:
    """Whether a longer sequence fails or depends on its batch: positions that were learned, LongRoPE, dynamic RoPE.

    Other rotary models compute something for any length, which they were not trained on.
    """
    ropes = _ropes(config.get_text_config())
    return not ropes or any(rope.get("rope_type") in ("longrope", "dynamic") for rope in ropes)


def check_lengths(config: Any, lengths: Iterable[int], what: str) -> None:
    """Refuse rows that a model cannot compute before the first of them is due; say so where it merely never saw such.

    Raises:
        InvalidArgument: rows of ``what`` beyond the context of a model that ends there (see ends_hard).
    """
    limit = context_tokens(config)
    beyond = [length for length in lengths if limit is not None and length > limit]
    if not beyond:
        return
    rows = f"{len(beyond)} rows have more tokens, up to {max(beyond)}, than the model's context of {limit}"
    if ends_hard(config):
        raise InvalidArgument(what, f"{rows}; lower data.max_tokens (and data.max_prompt_tokens) to leave them out")
    logger.warning("%s: %s; the model goes on by its rotary positions, which it was not trained on", what, rows)


def _ropes(shape: Any) -> list[dict[str, Any]]:
    """The parameters of rotary embeddings, one set or one per kind of layer; none where positions are learned."""
    parameters = getattr(shape, "rope_parameters", None) or {}
    return [rope for rope in parameters.values() if isinstance(rope, dict)] or ([parameters] if parameters else [])
