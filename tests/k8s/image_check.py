"""Runs inside the image (tests/k8s/image_check.sh): ``lodestar serve reward`` turns SERVING, scores, and drains."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lodestar.client import RewardClient
from lodestar.config import ArchitectureConfig, TokenizerConfig
from lodestar.data.tokenizer import train_tokenizer
from lodestar.model.loading import new_causal_lm, save_model, scalar_from_causal_lm

ADDRESS = "127.0.0.1:50051"
MODEL = Path("/tmp/model")


def make_model() -> None:
    """A reward model with random weights."""
    tokenizer = train_tokenizer(TokenizerConfig(), ["what color is the sky ?", "the sky is blue"], context_tokens=64)
    architecture = ArchitectureConfig(
        hidden_size=32, intermediate_size=64, layers=1, heads=2, kv_heads=2, context_tokens=64
    )
    save_model(
        scalar_from_causal_lm(new_causal_lm(architecture, tokenizer, seed=0), tokenizer, seed=0), tokenizer, MODEL
    )


def await_serving(server: subprocess.Popen[bytes], seconds: float) -> None:
    """Polls the health name that the readiness probe asks for."""
    deadline = time.monotonic() + seconds
    with grpc.insecure_channel(ADDRESS) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="lodestar.v1.RewardService")
        while time.monotonic() < deadline and server.poll() is None:
            try:
                if health.Check(request, timeout=2).status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.5)
    sys.exit(f"the reward server was not SERVING within {seconds:.0f} s (exit status {server.poll()})")


def main() -> None:
    make_model()
    server = subprocess.Popen(
        f"lodestar serve reward {MODEL} --host=0.0.0.0 --port=50051 --metrics-port=9090 --insecure".split()
    )
    try:
        await_serving(server, 180)
        with RewardClient(ADDRESS) as client:
            (score,) = client.score([("what color is the sky ?", "the sky is blue")]).scores
        print(f"SERVING; score {score.score:.3f}")
        server.send_signal(signal.SIGTERM)
        status = server.wait(timeout=30)
        if status != 0:
            sys.exit(f"SIGTERM ended the server with exit status {status}")
    finally:
        server.kill()


if __name__ == "__main__":
    main()
