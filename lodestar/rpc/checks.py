"""What every server asks of sequences it is given to score: one home for these refusals."""

from __future__ import annotations

from collections.abc import Sequence

from lodestar.errors import InvalidArgument, TokenizerMismatch
from lodestar.records import Scored

MAX_SEQUENCES = 4096
"""Of one call."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 100.0


def check_tokenizer_hash(ours: str, theirs: str) -> None:
    """Raises TokenizerMismatch when the caller names a tokenizer, and it is another than this model's."""
    if theirs and theirs != ours:
        raise TokenizerMismatch(ours, theirs)


def check_count(items: Sequence[object], field: str) -> None:
    """Raises InvalidArgument when there is nothing to do or too much for one call."""
    if not items:
        raise InvalidArgument(field, "is empty; give at least one")
    if len(items) > MAX_SEQUENCES:
        raise InvalidArgument(field, f"holds {len(items)}; at most {MAX_SEQUENCES} per call")


def check_tokens(token_ids: Sequence[int], field: str, *, vocab_size: int, context_tokens: int) -> None:
    """Raises InvalidArgument when ``field`` is empty, longer than the context or holds an id that is no token."""
    if not token_ids:
        raise InvalidArgument(field, "is empty; give at least one token")
    if len(token_ids) > context_tokens:
        raise InvalidArgument(field, f"holds {len(token_ids)} tokens; this model's context holds {context_tokens}")
    largest = max(token_ids)
    if largest >= vocab_size or min(token_ids) < 0:
        wrong = largest if largest >= vocab_size else min(token_ids)
        raise InvalidArgument(field, f"holds id {wrong}; this model's vocabulary ends at {vocab_size - 1}")


def check_scored(sequences: Sequence[Scored], field: str, *, vocab_size: int, context_tokens: int) -> None:
    """Checks the count, every sequence and its prompt length; a completion has at least one token.

    Raises:
        InvalidArgument: names the sequence and its field.
    """
    check_count(sequences, field)
    for i, scored in enumerate(sequences):
        name = f"{field}[{i}]"
        check_tokens(scored.token_ids, f"{name}.token_ids", vocab_size=vocab_size, context_tokens=context_tokens)
        if not 1 <= scored.prompt_tokens < len(scored.token_ids):
            raise InvalidArgument(
                f"{name}.prompt_tokens",
                f"must be 1 … {len(scored.token_ids) - 1} of these {len(scored.token_ids)} tokens, "
                f"so that prompt and completion have one each; got {scored.prompt_tokens}",
            )


def check_temperature(temperature: float) -> None:
    """Raises InvalidArgument for a temperature that policies do not sample at; below 0.001 logits overflow."""
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise InvalidArgument("temperature", f"must be {MIN_TEMPERATURE} … {MAX_TEMPERATURE:g}, got {temperature}")
