"""Whose call it is that a server answers, for fair shares: set by the interceptor, read where work is queued."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

from lodestar.fair import Flow
from lodestar.rpc.access import Identity, Role

FOR_TRAINING = (("lodestar-for", "training"),)
"""Metadata of the run's own calls, for plaintext ports, where nobody shows who he is. Elsewhere it is not read."""
_CALL: ContextVar[Flow] = ContextVar("call", default=Flow())  # noqa: B039 - frozen


def flow_of(identity: Identity | None, metadata: Iterable[tuple[str, str | bytes]], peer: str) -> Flow:
    """A call's flow: training for processes of the fleet, else the certificate's or token's name, or the connection.

    Args:
        identity: what the gate found; None on a plaintext port.
        peer: gRPC's name of the connection: ``ipv4:127.0.0.1:40112``.
    """
    if identity is not None:
        return Flow(training=True) if identity.role is Role.WORKER else Flow(caller=identity.name)
    if any((key, value) in FOR_TRAINING for key, value in metadata):
        return Flow(training=True)
    return Flow(caller=peer)


def begin(flow: Flow) -> None:
    """The call that this task answers is the flow's."""
    _CALL.set(flow)


def present() -> Flow:
    """Whose call this task answers."""
    return _CALL.get()
