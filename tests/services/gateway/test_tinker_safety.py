"""Who may train through the gateway, how large a body may be, and that its command takes a training server alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from lodestar_services.gateway.endpoint import TRAINING_METHOD, Door
from lodestar_services.gateway.errors import ApiError
from lodestar_services.gateway.tinker import requests, wire

from lodestar.cli.serve import serve
from lodestar.config import GatewayConfig, GatewayTask
from lodestar.errors import ConfigError
from lodestar.rpc.access import Role, add_token
from lodestar.v1 import tinker_pb2


def test_a_token_is_the_sdks_key_behind_its_prefix(tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens", "ada", Role.CALLER)
    door = Door(GatewayConfig(), tmp_path / "tokens", TRAINING_METHOD)
    door.admit({b"x-api-key": f"tml-{token}".encode()})
    door.admit({b"authorization": f"Bearer {token}".encode()})
    for headers in ({}, {b"x-api-key": b"tml-other"}, {b"x-api-key": b"tml-"}):
        with pytest.raises(ApiError) as refused:
            door.admit(headers)
        assert refused.value.status == 401


def test_a_gateway_stands_before_policy_servers_or_a_training_server() -> None:
    task = {"run": "t", "folder": "x"}
    assert GatewayTask.model_validate({**task, "endpoints": {"training": "127.0.0.1:1"}}).endpoints.policy == ()
    with pytest.raises(ValueError, match="or a --training server's"):
        GatewayTask.model_validate(task)
    with pytest.raises(ConfigError, match="--training: is a gateway's, and this is a policy"):
        serve("policy", "x", [], listening={}, redis=None, digest=None, device="cpu", dtype="float32", training="a:1")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (
            {"model_id": "m", "seq_id": 1, "adam_params": {"learning_rate": 1e-4, "momentum": 0.9}},
            "adam_params.momentum",
        ),
        ({"model_id": "m", "seq_id": 1, "optimizer_params": {"type": "dimuon"}}, "optimizer_params"),
        ({"seq_id": 1, "adam_params": {}}, "model_id"),
        ([], None),
    ],
)
def test_bodies_that_mean_something_else_are_refused_by_field(body: object, field: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        requests.read(requests.OptimStep, body)
    assert (refused.value.status, refused.value.param) == (400, field)


def test_messages_that_cannot_be_read_are_refused_by_place() -> None:
    with pytest.raises(ApiError, match="is no ForwardBackwardRequest"):
        wire.read_forward_backward(b"\xff\xff")
    text = tinker_pb2.TinkerChunk(text=tinker_pb2.TinkerText(tokens=b"\1\0\0\0"))
    image = tinker_pb2.TinkerDatum(input=[text, tinker_pb2.TinkerChunk(image=b"")])
    spans = tinker_pb2.TinkerDatum(input=[text], input_spans=[b""])
    other = tinker_pb2.TinkerDatum(input=[text], loss_inputs={"rewards": tinker_pb2.TinkerTensor(dense=b"")})
    for datum, message in ((image, "holds image"), (spans, "model_input_spans"), (other, r"loss_fn_inputs\[rewards\]")):
        with pytest.raises(ApiError, match=r"data\[0\]\." + ".*" + message):
            wire.datums_of(tinker_pb2.TinkerForwardBackward(data=[datum]))
    bound = {"clip_high_threshold": tinker_pb2.TinkerOption(number=0.9)}
    with pytest.raises(ApiError, match=r"loss_fn_config\[clip_high_threshold\]: must be 1 … inf, got 0.9"):
        wire.options_of(tinker_pb2.TinkerForwardBackward(options=bound))
    bounds = {"clip_low_threshold": tinker_pb2.TinkerOption(number=0.9), "beta": tinker_pb2.TinkerOption(number=0.5)}
    options = wire.options_of(tinker_pb2.TinkerForwardBackward(options=bounds))
    assert options == {"clip_low": pytest.approx(0.1), "beta": 0.5}
