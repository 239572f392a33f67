"""What callers hand over, as the records that it means: records themselves, and where that is plain, dicts, pairs and
lists. What means nothing is refused by its place, with the type that was wanted and the one that came."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from lodestar.errors import InvalidArgument
from lodestar.records import ChatMessage, SamplingParams, Scored, ScoreItem, WeightVersion

PromptLike = str | Sequence[int] | Sequence[ChatMessage | Mapping[str, str]]
"""Text, token ids, or a chat for the model's template; its turns are ChatMessages or {"role", "content"}."""
ItemLike = ScoreItem | Mapping[str, Any] | tuple[str, str]
"""What to score: a record, a (prompt, completion) pair or a mapping of a record's fields."""
SequenceLike = Scored | Mapping[str, Any] | tuple[Sequence[int], Sequence[int]]
"""Tokens and how many are the prompt: a record, a pair of ids (prompt, completion), or a mapping of its fields."""
Record = TypeVar("Record")


def prompt_of(prompt: Any) -> str | tuple[int, ...] | tuple[ChatMessage, ...]:
    """
    Raises:
        InvalidArgument: it is no text, no token ids and no chat, or empty.
    """
    wanted = 'text, token ids, or a chat of ChatMessages or {"role", "content"}'
    if isinstance(prompt, str):
        return prompt
    parts = _listed("prompt", prompt, wanted)
    if not parts:
        raise InvalidArgument("prompt", f"is empty; it must be {wanted}")
    return ids_of("prompt", parts, wanted) if isinstance(parts[0], Integral) else messages_of("prompt", parts, wanted)


def messages_of(field: str, turns: Any, wanted: str = 'a chat of ChatMessages or {"role", "content"}') -> Any:
    """A chat's turns; raises as prompt_of."""
    return tuple(
        _record(f"{field}[{i}]", turn, ChatMessage, wanted) for i, turn in enumerate(_listed(field, turns, wanted))
    )


def ids_of(field: str, ids: Any, wanted: str = "token ids") -> tuple[int, ...]:
    """Token ids as ints; raises as prompt_of."""
    listed = _listed(field, ids, wanted)
    wrong = next((i for i, one in enumerate(listed) if isinstance(one, bool) or not isinstance(one, Integral)), None)
    if wrong is not None:
        raise _unwanted(f"{field}[{wrong}]", "a token id (int)", listed[wrong])
    return tuple(map(int, listed))


def items_of(items: Any) -> list[ScoreItem]:
    """What to score; raises InvalidArgument as prompt_of."""
    wanted = 'ScoreItems, (prompt, completion) pairs or {"prompt", "completion"}'
    return [_item(f"items[{i}]", item, wanted) for i, item in enumerate(_listed("items", items, f"a list of {wanted}"))]


def _item(field: str, item: Any, wanted: str) -> ScoreItem:
    if isinstance(item, tuple | list) and len(item) == 2:
        item = ScoreItem(*item)
    record = _record(field, item, ScoreItem, wanted)
    halves = [_half(f"{field}.{name}", getattr(record, name)) for name in ("prompt", "completion")]
    return dataclasses.replace(
        record, prompt=halves[0], completion=halves[1], messages=messages_of(f"{field}.messages", record.messages)
    )


def _half(field: str, value: Any) -> str | tuple[int, ...]:
    return value if isinstance(value, str) else ids_of(field, value, "text or token ids")


def sequences_of(sequences: Any) -> list[Scored]:
    """Sequences to take log-probs of; raises InvalidArgument as prompt_of."""
    wanted = 'Scored records, (prompt ids, completion ids) pairs or {"token_ids", "prompt_tokens"}'
    found = []
    for i, one in enumerate(_listed("sequences", sequences, f"a list of {wanted}")):
        field = f"sequences[{i}]"
        if isinstance(one, tuple | list) and len(one) == 2 and not isinstance(one[0], Integral):
            if any(isinstance(half, str) for half in one):
                raise InvalidArgument(
                    field, f"is text, and log-probs are of token ids (PolicyClient.tokenize); wanted {wanted}"
                )
            prompt, completion = (ids_of(f"{field}[{half}]", one[half]) for half in (0, 1))
            one = Scored(prompt + completion, len(prompt))
        record = _record(field, one, Scored, wanted)
        found.append(
            Scored(
                ids_of(f"{field}.token_ids", record.token_ids), _whole(f"{field}.prompt_tokens", record.prompt_tokens)
            )
        )
    return found


def sampling_of(sampling: Any, options: Mapping[str, Any]) -> SamplingParams:
    """A record, a mapping of its fields, or its fields as keyword arguments; raises as prompt_of."""
    if sampling is not None and options:
        raise InvalidArgument("sampling", f"is given whole and as {', '.join(options)}; choose one")
    if isinstance(sampling, SamplingParams):
        options = {field.name: getattr(sampling, field.name) for field in dataclasses.fields(SamplingParams)}
    elif sampling is not None:
        if not isinstance(sampling, Mapping):
            raise _unwanted("sampling", "SamplingParams, or a mapping of its fields", sampling)
        options = sampling
    if unknown := sorted(options.keys() - _SAMPLING.keys()):
        hint = nearest(unknown[0], _SAMPLING)
        raise InvalidArgument(
            f"sampling.{unknown[0]}", f"is no option of sampling{hint}; it has {', '.join(_SAMPLING)}"
        )
    if "max_tokens" not in options:
        raise InvalidArgument("sampling.max_tokens", "is required: how many tokens may a response have?")
    return SamplingParams(**{name: _SAMPLING[name](f"sampling.{name}", value) for name, value in options.items()})


def record_of(field: str, value: Any, kind: type[Record]) -> Record:
    """A record, or a mapping of its fields; raises as prompt_of."""
    return _record(field, value, kind, f"a {kind.__name__}, or a mapping of its fields")


def version_of(field: str, version: Any) -> WeightVersion:
    """Raises as prompt_of."""
    return record_of(field, version, WeightVersion)


def text_of(field: str, value: Any) -> str:
    """Raises as prompt_of."""
    if not isinstance(value, str):
        raise _unwanted(field, "str", value)
    return value


def real_of(field: str, value: Any) -> float:
    """Raises as prompt_of."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _unwanted(field, "float", value)
    return float(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean …?`` where a known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _whole(field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _unwanted(field, "int", value)
    return int(value)


def _flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _unwanted(field, "bool", value)
    return value


def _texts(field: str, value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(_listed(field, value, "a list of str"))


def _bias(field: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise _unwanted(field, "a mapping of token id (int) to float", value)
    return {_whole(f"{field} key", key): real_of(f"{field}[{key}]", one) for key, one in value.items()}


_READERS: dict[Any, Callable[[str, Any], Any]] = {
    int: _whole,
    float: real_of,
    bool: _flag,
    int | None: lambda field, value: None if value is None else _whole(field, value),
    tuple[str, ...]: _texts,
    tuple[int, ...]: ids_of,
    Mapping[int, float]: _bias,
}
_SAMPLING = {name: _READERS[hint] for name, hint in typing.get_type_hints(SamplingParams).items()}
"""Field of SamplingParams → what checks it."""


def _record(field: str, value: Any, kind: type[Record], wanted: str) -> Record:
    """A record, or a mapping of its fields."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise _unwanted(field, wanted, value)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = [one.name for one in fields]
    if unknown := [str(name) for name in value if name not in names]:
        raise InvalidArgument(f"{field}.{unknown[0]}", f"is none of {', '.join(names)}{nearest(unknown[0], names)}")
    needed = [one.name for one in fields if one.default is one.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in value]:
        raise InvalidArgument(f"{field}.{missing[0]}", f"is missing; wanted {wanted}")
    return kind(**value)


def _listed(field: str, value: Any, wanted: str) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _unwanted(field, wanted, value)
    return list(value)


def _unwanted(field: str, wanted: str, value: Any) -> InvalidArgument:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
    return InvalidArgument(field, f"must be {wanted}, is {type(value).__name__} {shown}")
