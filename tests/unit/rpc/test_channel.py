"""How addresses become a gRPC target."""

from __future__ import annotations

import pytest

from lodestar.errors import ConfigError
from lodestar.rpc.channel import target


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ("localhost:50051", "localhost:50051"),
        (["dns:///policy:50051"], "dns:///policy:50051"),
        (["127.0.0.1:1", "localhost:2", "10.0.0.7:3"], "ipv4:127.0.0.1:1,127.0.0.1:2,10.0.0.7:3"),
    ],
)
def test_addresses_become_one_target(addresses: str | list[str], expected: str) -> None:
    assert target(addresses) == expected


def test_several_names_are_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"policy-1:50051: several addresses .* use one dns:/// target"):
        target(["127.0.0.1:1", "policy-1:50051"])


def test_no_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="no address"):
        target([])
