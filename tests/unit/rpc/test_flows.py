"""Whose a call is."""

from __future__ import annotations

import pytest

from lodestar.fair import Flow
from lodestar.rpc.access import Identity, Role
from lodestar.rpc.flows import FOR_TRAINING, flow_of

PEER = "ipv4:127.0.0.1:40112"


@pytest.mark.parametrize(
    ("identity", "metadata", "flow"),
    [
        (Identity("rollout", Role.WORKER), (), Flow(training=True)),
        (Identity("dashboard", Role.CALLER), (), Flow(caller="dashboard")),
        (Identity("dashboard", Role.CALLER), FOR_TRAINING, Flow(caller="dashboard")),
        (Identity("ann", Role.OPERATOR), FOR_TRAINING, Flow(caller="ann")),
        (None, (("user-agent", "x"), *FOR_TRAINING), Flow(training=True)),
        (None, (("lodestar-for", "evaluation"),), Flow(caller=PEER)),
        (None, (), Flow(caller=PEER)),
    ],
)
def test_training_is_who_shows_that_he_is_of_the_fleet_and_says_so_where_nobody_is_asked(
    identity: Identity | None, metadata: tuple[tuple[str, str], ...], flow: Flow
) -> None:
    assert flow_of(identity, metadata, PEER) == flow
