"""The queue's values: records to and from the messages of proto/lodestar/v1/rollout.proto."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from lodestar.queue.port import DeadLetter
from lodestar.records import FinishReason, Prompt, Rollout, Sample, Ticket
from lodestar.rpc import convert
from lodestar.v1 import common_pb2, rollout_pb2

M = TypeVar("M", bound=Message)


def ticket_bytes(ticket: Ticket) -> bytes:
    """A serialized lodestar.v1.Ticket."""
    data: bytes = _ticket_to_proto(ticket).SerializeToString()
    return data


def ticket_from(data: bytes) -> Ticket:
    """The ticket of :func:`ticket_bytes`.

    Raises:
        ValueError: they are none.
    """
    return _ticket_from_proto(_parse(rollout_pb2.Ticket, data))


def rollout_bytes(rollout: Rollout) -> bytes:
    """A serialized lodestar.v1.Rollout; log-probs and scores become float32."""
    message = rollout_pb2.Rollout(
        ticket=_ticket_to_proto(rollout.ticket),
        version=convert.weight_version_to_proto(rollout.version),
        samples=[_sample_to_proto(sample) for sample in rollout.samples],
        worker=rollout.worker,
        generate_seconds=rollout.generate_seconds,
        score_seconds=rollout.score_seconds,
    )
    data: bytes = message.SerializeToString()
    return data


def rollout_from(data: bytes) -> Rollout:
    """The rollout of :func:`rollout_bytes`.

    Raises:
        ValueError: they are none.
    """
    message = _parse(rollout_pb2.Rollout, data)
    return Rollout(
        ticket=_ticket_from_proto(message.ticket),
        version=convert.weight_version_from_proto(message.version),
        samples=tuple(_sample_from_proto(sample) for sample in message.samples),
        worker=message.worker,
        generate_seconds=message.generate_seconds,
        score_seconds=message.score_seconds,
    )


def dead_letter_bytes(letter: DeadLetter) -> bytes:
    """A serialized lodestar.v1.DeadLetter."""
    ticket = None if letter.ticket is None else _ticket_to_proto(letter.ticket)
    message = rollout_pb2.DeadLetter(ticket=ticket, error=letter.error, attempts=letter.attempts, worker=letter.worker)
    data: bytes = message.SerializeToString()
    return data


def dead_letter_from(data: bytes) -> DeadLetter:
    """The dead letter of :func:`dead_letter_bytes`.

    Raises:
        ValueError: they are none.
    """
    message = _parse(rollout_pb2.DeadLetter, data)
    ticket = _ticket_from_proto(message.ticket) if message.HasField("ticket") else None
    return DeadLetter(ticket, message.error, message.attempts, message.worker)


def check_is(ticket: Ticket, run: str, incarnation: str, ticket_id: str) -> None:
    """Whether an entry's ticket belongs where it was found.

    Raises:
        ValueError: it does not.
    """
    if (ticket.run, ticket.incarnation, ticket.id) != (run, incarnation, ticket_id):
        raise ValueError(
            f"has the id {ticket_id!r} and holds ticket {ticket.id} of run {ticket.run!r}, incarnation "
            f"{ticket.incarnation!r}"
        )


def names(fields: Iterable[bytes]) -> str:
    """An entry's fields for a message to people, cut to a line."""
    return ", ".join(name.decode(errors="replace") for name in sorted(fields))[:100] or "none"


def _parse(kind: type[M], data: bytes) -> M:
    try:
        message: M = kind.FromString(data)
    except DecodeError:
        raise ValueError(f"holds {len(data)} bytes that are no {kind.DESCRIPTOR.full_name}") from None
    return message


def _ticket_to_proto(ticket: Ticket) -> rollout_pb2.Ticket:
    return rollout_pb2.Ticket(
        run=ticket.run,
        incarnation=ticket.incarnation,
        step=ticket.step,
        index=ticket.index,
        attempt=ticket.attempt,
        prompt_id=ticket.prompt.id,
        prompt_tokens=ticket.prompt.token_ids,
        prompt_text=ticket.prompt.text,
        prompt_columns=convert.columns_text(ticket.prompt.columns),
        prompt_messages=convert.chat_to_proto(ticket.prompt.messages).messages,
        n=ticket.n,
        seed=ticket.seed,
        min_step=ticket.min_step,
        max_tokens=ticket.max_tokens,
        temperature=ticket.temperature,
    )


def _ticket_from_proto(message: rollout_pb2.Ticket) -> Ticket:
    return Ticket(
        run=message.run,
        incarnation=message.incarnation,
        step=message.step,
        index=message.index,
        attempt=message.attempt,
        prompt=Prompt(
            message.prompt_id,
            message.prompt_text,
            tuple(message.prompt_tokens),
            convert.chat_from_proto(common_pb2.Chat(messages=message.prompt_messages)),
            convert.columns_from_text(message.prompt_columns, "prompt_columns"),
        ),
        n=message.n,
        seed=message.seed,
        min_step=message.min_step,
        max_tokens=message.max_tokens,
        temperature=message.temperature,
    )


def _sample_to_proto(sample: Sample) -> rollout_pb2.Sample:
    return rollout_pb2.Sample(
        token_ids=sample.token_ids,
        behaviour_logprobs=sample.behaviour_logprobs,
        reference_logprobs=sample.reference_logprobs,
        score=sample.score,
        score_standard_deviation=sample.score_standard_deviation,
        heads=dict(sample.heads),
        finish_reason=convert.finish_reason_to_proto(sample.finish_reason),
        text=sample.text,
    )


def _sample_from_proto(message: rollout_pb2.Sample) -> Sample:
    return Sample(
        token_ids=tuple(message.token_ids),
        behaviour_logprobs=tuple(message.behaviour_logprobs),
        reference_logprobs=tuple(message.reference_logprobs),
        score=message.score if message.HasField("score") else None,
        score_standard_deviation=message.score_standard_deviation,
        heads=dict(message.heads),
        finish_reason=convert.finish_reason_from_proto(message.finish_reason) or FinishReason.ERROR,
        text=message.text,
    )
