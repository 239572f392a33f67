"""What a message may hold, looked at before anything is done with it: no refusal costs more than counting.

Lengths of a text are bounded by the model's context: real text has 3 to 5 characters per token, so what has more than
CHARACTERS_PER_TOKEN for every token of the context does not fit. Tokens themselves are checked afterwards, by
lodestar.rpc.checks and the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import Any

from lodestar.errors import InvalidArgument
from lodestar.rpc.checks import check_count
from lodestar.v1 import policy_pb2

CHARACTERS_PER_TOKEN, ALWAYS_CHARACTERS = 32, 8192
"""The latter are let through whatever the context: reading them costs nothing."""
MAX_STOPS, MAX_STOP_CHARACTERS = 64, 1024
"""Stop strings, and the length of each."""
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 4096
MAX_MESSAGES = 1024
"""Of one chat."""


def check_text(text: str, field: str, context_tokens: int) -> None:
    """Raises InvalidArgument for a text that is too long to fit into the context."""
    most = _most(context_tokens)
    if len(text) > most:
        raise InvalidArgument(
            field, f"holds {len(text)} characters; at most {most} for this model's context of {context_tokens} tokens"
        )


def check_chat(messages: Sequence[Any], field: str, context_tokens: int) -> None:
    """Raises InvalidArgument for a chat of too many messages, or whose texts together are too long."""
    _check_length(messages, field, MAX_MESSAGES, "messages")
    most, held = _most(context_tokens), sum(len(message.content) + len(message.role) for message in messages)
    if held > most:
        raise InvalidArgument(
            field, f"holds {held} characters; at most {most} for this model's context of {context_tokens} tokens"
        )


def check_sampling(sampling: policy_pb2.SamplingParams) -> None:
    """Raises InvalidArgument for more stops or biases than anybody means."""
    _check_length(sampling.stop, "sampling.stop", MAX_STOPS, "strings")
    for number, stop in enumerate(sampling.stop):
        _check_length(stop, f"sampling.stop[{number}]", MAX_STOP_CHARACTERS, "characters")
    _check_length(sampling.stop_token_ids, "sampling.stop_token_ids", MAX_STOP_TOKEN_IDS, "ids")
    _check_length(sampling.logit_bias, "sampling.logit_bias", MAX_LOGIT_BIASES, "tokens")


def check_ids(ids: Sized, field: str, context_tokens: int) -> None:
    """Raises InvalidArgument for more token ids than the context holds."""
    if len(ids) > context_tokens:
        raise InvalidArgument(field, f"holds {len(ids)} tokens; this model's context holds {context_tokens}")


def check_sequences(sequences: Sequence[Any], field: str, context_tokens: int) -> None:
    """Raises InvalidArgument for too many sequences, or one beyond the context."""
    check_count(sequences, field)
    for number, scored in enumerate(sequences):
        check_ids(scored.token_ids, f"{field}[{number}].token_ids", context_tokens)


def check_score_items(items: Sequence[Any], context_tokens: int | None, characters: int) -> None:
    """Raises InvalidArgument for too many items, or a half that no model of the server can read.

    Args:
        items: lodestar.v1.ScoreItem messages.
        context_tokens: the smallest context among the server's models; None when it has none.
        characters: the most that a text may have, whatever reads it.
    """
    check_count(items, "items")
    for number, item in enumerate(items):
        for half in ("prompt", "completion"):
            text, ids = getattr(item, f"{half}_text"), getattr(item, f"{half}_tokens").ids
            if len(text) > characters:
                raise InvalidArgument(f"items[{number}].{half}_text", f"is longer than {characters} characters")
            if context_tokens is not None:
                check_text(text, f"items[{number}].{half}_text", context_tokens)
                check_ids(ids, f"items[{number}].{half}_tokens", context_tokens)


def slices(sizes: Iterable[int], most: int) -> list[slice]:
    """Cuts a row of things into runs whose sizes together stay below ``most``; a larger one stands alone."""
    cuts: list[slice] = []
    begin = held = end = 0
    for size in sizes:
        if end > begin and held + size > most:
            cuts.append(slice(begin, end))
            begin, held = end, 0
        held, end = held + size, end + 1
    return [*cuts, slice(begin, end)] if end else cuts


def _most(context_tokens: int) -> int:
    return max(ALWAYS_CHARACTERS, CHARACTERS_PER_TOKEN * context_tokens)


def _check_length(what: Sized, field: str, most: int, of: str) -> None:
    if len(what) > most:
        raise InvalidArgument(field, f"holds {len(what)} {of}; at most {most}")
