"""The table of who may call what covers the contract."""

import re
from pathlib import Path

import pytest

from lodestar.errors import PermissionDenied, Unauthenticated
from lodestar.rpc.access import PERMITTED, Gate, Identity, Role

PROTOS = Path(__file__).parents[3] / "proto" / "lodestar" / "v1"
TLS = {"transport_security_type": [b"ssl"]}


def certificate(*names: bytes) -> dict[str, list[bytes]]:
    return {**TLS, "x509_common_name": [b"someone"], "x509_subject_alternative_name": list(names)}


def test_every_service_of_the_contract_says_whom_it_is_for() -> None:
    text = "".join(path.read_text() for path in PROTOS.glob("*.proto"))
    services = {f"lodestar.v1.{name}" for name in re.findall(r"^service (\w+)", text, re.MULTILINE)}
    assert set(PERMITTED) == services
    assert all(PERMITTED.values())


def test_only_operators_steer_and_only_the_fleet_fetches_weights() -> None:
    for service in ("lodestar.v1.LearnerService", "lodestar.v1.PolicyControlService"):
        assert PERMITTED[service] == {Role.OPERATOR}
    assert PERMITTED["lodestar.v1.WeightsService"] == {Role.WORKER}


def test_a_certificate_is_known_by_its_uri() -> None:
    shown = certificate(b"localhost", b"spiffe://lodestar/worker/rollout")
    assert Gate().admit("lodestar.v1.RewardService/Score", shown, ()) == Identity("rollout", Role.WORKER)


@pytest.mark.parametrize(
    "names",
    [
        (b"spiffe://lodestar/worker/a", b"spiffe://lodestar/operator/b"),
        (b"spiffe://elsewhere/operator/a",),
        (b"spiffe://lodestar/operator",),
        (b"x-spiffe://lodestar/operator/a",),
    ],
)
def test_a_certificate_with_no_name_or_two_is_denied(names: tuple[bytes, ...]) -> None:
    with pytest.raises(PermissionDenied):
        Gate().admit("lodestar.v1.LearnerService/Stop", certificate(*names), ())


def test_a_service_that_is_not_listed_is_for_nobody() -> None:
    with pytest.raises(PermissionDenied, match="is for: nobody"):
        Gate().admit("lodestar.v1.NewService/Do", certificate(b"spiffe://lodestar/operator/me"), ())


def test_a_token_decides_where_a_certificate_is_shown_too() -> None:
    with pytest.raises(Unauthenticated):
        Gate().admit(
            "lodestar.v1.LearnerService/Stop",
            certificate(b"spiffe://lodestar/operator/me"),
            (("authorization", "Bearer x"),),
        )
