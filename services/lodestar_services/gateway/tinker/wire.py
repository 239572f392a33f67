"""Tinker's protobuf bodies to and from records; arrays are raw little-endian bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from lodestar.errors import LodestarError
from lodestar.records import Datum, FinishReason, LossResult, Sampled, TokenCandidate
from lodestar.v1 import tinker_pb2
from lodestar_services.gateway.errors import ApiError, unsupported

_NUMBERS: Mapping[int, Any] = {
    tinker_pb2.TINKER_DTYPE_FLOAT32: np.dtype("<f4"),
    tinker_pb2.TINKER_DTYPE_INT64: np.dtype("<i8"),
}
_INPUTS = {"target_tokens": "targets", "weights": "weights", "logprobs": "logprobs", "advantages": "advantages"}
"""Their names of a datum's numbers → ours."""
_OPTIONS = {"clip_low_threshold": "clip_low", "clip_high_threshold": "clip_high"}
_FOLDED = {"ratio_max": "max", "ratio_min": "min"}
"""How the SDK folds a metric over the parts of a batch; the others are sums."""
_EMPTY_CELL = (0, -99999.0)


def read_forward_backward(body: bytes) -> tinker_pb2.TinkerForwardBackward:
    """
    Raises:
        ApiError: the body is no such message.
    """
    message = tinker_pb2.TinkerForwardBackward()
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise ApiError(400, "the body is no ForwardBackwardRequest") from None
    return message


def options_of(message: tinker_pb2.TinkerForwardBackward) -> dict[str, float]:
    """A loss's options in our names: ratios' bounds become distances from 1.

    Raises:
        ApiError: a bound on the wrong side of 1, or text where a number is wanted.
    """
    options: dict[str, float] = {}
    for name, option in message.options.items() or ((name, None) for name in message.numbers):
        if option is not None and option.WhichOneof("value") == "text":
            raise unsupported(f"loss_fn_config[{name}]", "is text, and every option of these losses is a number")
        value = message.numbers[name] if option is None else option.number
        options[_OPTIONS.get(name, name)] = value
    for name, low, high in (("clip_low", 0.0, 1.0), ("clip_high", 1.0, math.inf)):
        if name in options:
            if not low <= options[name] <= high:
                said = f"loss_fn_config[{name}_threshold]"
                raise ApiError(400, f"{said}: must be {low:g} … {high:g}, got {options[name]}", param=said)
            options[name] = abs(options[name] - 1.0)
    return options


def datums_of(message: tinker_pb2.TinkerForwardBackward) -> list[Datum]:
    """
    Raises:
        ApiError: an image, several targets per position, or numbers that no loss here takes.
    """
    return [_datum(f"data[{i}]", datum) for i, datum in enumerate(message.data)]


def _datum(place: str, message: tinker_pb2.TinkerDatum) -> Datum:
    if message.input_spans or message.loss_input_spans:
        raise unsupported(f"{place}.model_input_spans", "is not honoured by this server")
    ids: list[int] = []
    for chunk in message.input:
        if chunk.WhichOneof("chunk") != "text":
            raise unsupported(f"{place}.model_input", f"holds {chunk.WhichOneof('chunk')}; tokens alone are read")
        ids += np.frombuffer(chunk.text.tokens, dtype="<i4").tolist()
    given: dict[str, tuple[Any, ...]] = {}
    for name, tensor in message.loss_inputs.items():
        if name not in _INPUTS:
            raise unsupported(f"{place}.loss_fn_inputs[{name}]", f"is none of {', '.join(_INPUTS)}")
        given[_INPUTS[name]] = _values(f"{place}.loss_fn_inputs[{name}]", tensor)
    if any(not 0 <= one < 2**32 for one in (*ids, *given.get("targets", ()))):
        raise ApiError(400, f"{place}: holds a token id that is none", param=place)
    return Datum(tuple(ids), given.pop("targets", ()), **given)


def _values(place: str, tensor: tinker_pb2.TinkerTensor) -> tuple[Any, ...]:
    if tensor.WhichOneof("encoding") == "sparse" or len(tensor.shape) > 1:
        raise unsupported(place, "has several entries per position; this server takes one")
    if tensor.dtype not in _NUMBERS:
        raise ApiError(400, f"{place}: is neither float32 nor int64", param=place)
    return tuple(np.frombuffer(tensor.dense, dtype=_NUMBERS[tensor.dtype]).tolist())


def losses_to(result: LossResult) -> bytes:
    """The loss, its metrics and each datum's log-probs."""
    rows = [np.asarray(row, dtype="<f4") for row in result.sequences]
    offsets = np.cumsum([0, *(row.nbytes for row in rows)], dtype="<i8")
    field = tinker_pb2.TinkerBatched(
        data=b"".join(row.tobytes() for row in rows), offsets=offsets.tobytes(), dtype=tinker_pb2.TINKER_DTYPE_FLOAT32
    )
    record = tinker_pb2.TinkerRecords(type="ArrayRecord", fields={"logprobs": field}, count=len(rows))
    metrics = {f"{name}:{_FOLDED.get(name, 'sum')}": value for name, value in result.metrics.items()}
    metrics["loss:sum"] = result.loss
    return bytes(tinker_pb2.TinkerLosses(type="ArrayRecord", records=[record], metrics=metrics).SerializeToString())


def samples_to(sampled: Sampled, *, top_samples: int, top_prompt: int) -> bytes:
    """Samples and, where they were asked for, the prompt's log-probs.

    Raises:
        LodestarError: a sample ended with an error.
    """
    message = tinker_pb2.TinkerSamples()
    for sample in sampled.samples:
        if sample.finish_reason is FinishReason.ERROR:
            raise LodestarError(sample.error)
        cut = sample.finish_reason is FinishReason.LENGTH
        message.sequences.add(
            stop=tinker_pb2.TINKER_STOP_LENGTH if cut else tinker_pb2.TINKER_STOP_STOP,
            tokens=_bytes(sample.token_ids, "<i4"),
            logprobs=_bytes(sample.logprobs, "<f4"),
            top=_top(sample.top_logprobs, top_samples) if top_samples else None,
        )
    if sampled.prompt is not None:
        message.prompt_logprobs = _bytes((math.nan, *sampled.prompt.logprobs), "<f4")
        if top_prompt:
            message.top_prompt.CopyFrom(_top(((), *sampled.prompt.top_logprobs), top_prompt))
    return bytes(message.SerializeToString())


def _top(positions: Sequence[Sequence[TokenCandidate]], k: int) -> tinker_pb2.TinkerTop:
    cells = [
        [(one.token_id, one.logprob) for one in position] + [_EMPTY_CELL] * (k - len(position))
        for position in positions
    ]
    flat = [cell for row in cells for cell in row]
    return tinker_pb2.TinkerTop(
        token_ids=_bytes((token for token, _ in flat), "<i4"),
        logprobs=_bytes((value for _, value in flat), "<f4"),
        k=k,
        length=len(positions),
    )


def _bytes(values: Iterable[float], kind: str) -> bytes:
    return np.asarray(list(values), dtype=kind).tobytes()


def error_to(message: str, *, users: bool) -> Mapping[str, Any]:
    """A future that failed."""
    return {"error": message, "category": "user" if users else "server"}
