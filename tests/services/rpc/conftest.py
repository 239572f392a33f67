"""A fleet's certificates, and servers that demand them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lodestar.rpc.access import Role, add_token
from lodestar.rpc.certificates import Authority
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.rpc.state import ServiceState
from lodestar.v1 import policy_control_pb2, policy_control_pb2_grpc

CONTROL = policy_control_pb2.DESCRIPTOR.services_by_name["PolicyControlService"].full_name


@dataclass(frozen=True)
class Fleet:
    """Folders of certificates by name, a tokens file, and the tokens in it by role."""

    root: Path
    authority: Authority
    tokens_file: Path
    tokens: dict[str, str]

    def folder(self, name: str, role: str = "worker", *, authority: Authority | None = None, days: float = 1) -> Path:
        """A new certificate; ``days`` may be negative."""
        (authority or self.authority).issue(self.root / name, role, name, days=days)
        return self.root / name


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority.create()


@pytest.fixture
def fleet(tmp_path: Path, authority: Authority) -> Fleet:
    file = tmp_path / "tokens"
    tokens = {role.value: add_token(file, f"the-{role}", role) for role in Role}
    made = Fleet(tmp_path / "certs", authority, file, tokens)
    for name, role in (("policy", "worker"), ("rollout", "worker"), ("caller", "caller"), ("operator", "operator")):
        made.folder(name, role)
    (made.root / "outside").mkdir()
    (made.root / "outside" / "ca.crt").write_bytes(authority.pem)
    return made


class Control(policy_control_pb2_grpc.PolicyControlServiceServicer):
    """Pause answers; whoever gets that far was let in."""

    async def Pause(self, request: Any, context: Any) -> policy_control_pb2.PolicyControlServicePauseResponse:
        return policy_control_pb2.PolicyControlServicePauseResponse()


@pytest.fixture
def guarded(
    fleet: Fleet, make_spec: Callable[..., ServerSpec], server_thread: Callable[..., Any]
) -> Iterator[ServiceState]:
    """The scripted policy and its control service behind TLS and tokens."""
    spec = make_spec(tls=fleet.root / "policy", tokens=fleet.tokens_file, caller_port=0, health_port=0)
    control = Service(CONTROL, partial(policy_control_pb2_grpc.add_PolicyControlServiceServicer_to_server, Control()))
    spec.services.append(control)
    with server_thread(spec) as state:
        yield state
