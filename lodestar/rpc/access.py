"""Who may call what: roles, the certificates and tokens that carry them, and the gate that every call passes.

    gate = Gate(Tokens(Path("tokens")))
    gate.admit("lodestar.v1.LearnerService/Stop", context.auth_context(), metadata)

A fleet's own processes and operators show a certificate with the URI ``spiffe://lodestar/ROLE/NAME``; outside callers
send ``authorization: Bearer TOKEN`` over TLS. Plaintext ports exist on loopback addresses and under ``--insecure``
alone; there everyone may do everything, and a token is refused because it has been overheard by then.
"""

from __future__ import annotations

import enum
import hashlib
import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lodestar.errors import ConfigError, PermissionDenied, Unauthenticated
from lodestar.rpc.certificates import TRUST_DOMAIN
from lodestar.rpc.renewal import Renewed

log = logging.getLogger(__name__)


class Role(enum.StrEnum):
    """What a certificate or token is good for."""

    CALLER = "caller"
    """Another program: completions, scores, log-probs."""
    WORKER = "worker"
    """A process of the fleet: the same, and the learner's weights."""
    OPERATOR = "operator"
    """A person in charge: the same as callers, and control of servers and runs."""


_MODELS = frozenset(Role)
PERMITTED: Mapping[str, frozenset[Role]] = {
    "lodestar.v1.PolicyService": _MODELS,
    "lodestar.v1.RewardService": _MODELS,
    "lodestar.v1.ReferenceService": _MODELS,
    "lodestar.v1.TrainingService": _MODELS,
    "lodestar.v1.WeightsService": frozenset({Role.WORKER}),
    "lodestar.v1.PolicyControlService": frozenset({Role.OPERATOR}),
    "lodestar.v1.LearnerService": frozenset({Role.OPERATOR}),
    "lodestar.v1.FeedbackService": frozenset({Role.WORKER, Role.OPERATOR}),
    "lodestar.v1.RunService": frozenset({Role.OPERATOR}),
}
"""Roles by service; what is not listed is permitted to nobody."""

_URI = re.compile(rf"spiffe://{TRUST_DOMAIN}/(?P<role>[a-z]+)/(?P<name>[\w.-]+)")
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls: ``Identity("evaluation", Role.CALLER)``."""

    name: str
    role: Role


class Tokens:
    """The tokens file, read again when it changes: one ``NAME ROLE SHA256`` per line, ``#`` begins a comment.

    It holds digests, so that whoever reads it has no token. A file that is not there yet holds none.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ConfigError: a line cannot be read.
        """
        self._path = path
        self._known = Renewed("tokens", [path], self._read)
        if not self._known.present():
            log.warning("%s holds no token: every token will be refused", path)

    def identity(self, token: str) -> Identity | None:
        """Who holds the token; None when it is unknown."""
        return self._known.present().get(digest(token))

    def _read(self) -> dict[str, Identity]:
        if not self._path.exists():
            return {}
        known: dict[str, Identity] = {}
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), start=1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) != 3 or words[1] not in list(Role) or not re.fullmatch("[0-9a-f]{64}", words[2]):
                raise ConfigError(
                    f"{self._path}:{number}",
                    f"wants NAME ROLE SHA256 with a role of {', '.join(Role)}; lodestar certs token writes such lines",
                )
            known[words[2]] = Identity(words[0], Role(words[1]))
        return known


def add_token(path: Path, name: str, role: Role) -> str:
    """Makes a token, appends its line to the file and returns it: it is written nowhere else.

    Raises:
        ConfigError: the name cannot stand in the file.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError("name", f"{name!r}: letters, digits, dots and dashes only")
    token = secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{name} {role} {digest(token)}\n")
    return token


def digest(token: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


class Gate:
    """Decides about every call from what gRPC says of its connection."""

    def __init__(self, tokens: Tokens | None = None) -> None:
        self._tokens = tokens

    def admit(
        self,
        method: str,
        connection: Mapping[str, Iterable[bytes]],
        metadata: Iterable[tuple[str, str | bytes]],
    ) -> Identity | None:
        """Who calls ``lodestar.v1.Service/Method``; None on a plaintext port, where nobody is asked.

        Args:
            connection: gRPC's auth context.
            metadata: of the call.

        Raises:
            Unauthenticated: nothing known was shown, or a token in plaintext.
            PermissionDenied: the role may not do this.
        """
        authorization = [value for key, value in metadata if key == "authorization"]
        if b"ssl" not in connection.get("transport_security_type", ()):
            if authorization:
                raise Unauthenticated(
                    "a bearer token came over a plaintext connection, where anyone may have read it: replace the "
                    "token, and send it over TLS only"
                )
            return None
        if authorization:
            identity = self._by_token(authorization)
        else:
            identity = self._by_certificate(connection)
        if identity.role not in PERMITTED.get(method.partition("/")[0], frozenset()):
            wanted = " or ".join(sorted(PERMITTED.get(method.partition("/")[0], ()))) or "nobody"
            raise PermissionDenied(f"{identity.name} is a {identity.role}, and {method} is for: {wanted}")
        return identity

    def _by_token(self, authorization: list[str | bytes]) -> Identity:
        (value, *more) = authorization
        scheme, _, token = str(value).partition(" ")
        if more or scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("authorization: send one header of the form 'Bearer TOKEN'")
        identity = self._tokens.identity(token.strip()) if self._tokens else None
        if identity is None:
            raise Unauthenticated("authorization: this token is not known here; ask the operator for a new one")
        return identity

    def _by_certificate(self, connection: Mapping[str, Iterable[bytes]]) -> Identity:
        names = [name.decode(errors="replace") for name in connection.get("x509_subject_alternative_name", ())]
        shown = b"".join(connection.get("x509_common_name", ())).decode(errors="replace")
        if not names and not shown:
            raise Unauthenticated("authorization: no token was sent; this port wants 'Bearer TOKEN'")
        found = [match for name in names if (match := _URI.fullmatch(name))]
        if len(found) != 1 or found[0]["role"] not in list(Role):
            raise PermissionDenied(
                f"the certificate of {shown!r} names no role of ours: it needs one URI spiffe://{TRUST_DOMAIN}/ROLE/NAME"
            )
        return Identity(found[0]["name"], Role(found[0]["role"]))
