"""One model for every program: a policy server in a process that is watched, and the gateway in this one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lodestar.config.serve import Endpoints, GatewayTask, Listening, PolicyTask
from lodestar.crew.fleet import Fleet
from lodestar.crew.port import service_main
from lodestar.errors import LodestarError
from lodestar.local.board import Board
from lodestar.local.ports import free_ports
from lodestar.local.processes import Processes

WATCH_SECONDS = 0.2
READY_SECONDS = 1800.0
"""A large model takes its time to load."""


def serve_with_gateway(policy: PolicyTask, gateway: GatewayTask) -> int:
    """Serves until SIGTERM or SIGINT; the exit code. A policy server that dies is started again.

    The gateway's gRPC port, where it has one, becomes the policy server's: the gateway answers no calls of ours.

    Raises:
        LodestarError: the model cannot be served, or the policy server died too often.
    """
    free, metrics_port = free_ports(2)
    port = gateway.listening.port or free
    policy = policy.model_copy(update={"listening": Listening(port=port, metrics_port=metrics_port)})
    at = gateway.listening.model_copy(update={"port": 0})
    gateway = gateway.model_copy(update={"endpoints": Endpoints(policy=(f"127.0.0.1:{port}",)), "listening": at})
    with Processes(policy.folder / "logs") as processes:
        fleet = Fleet(lambda: processes, Board(policy.run, []), policy.folder / "services")
        try:
            fleet.serve(policy)
            fleet.wait_ready([policy.name], READY_SECONDS)
            print(_said(policy, gateway, port), file=sys.stderr, flush=True)
            with _watched(fleet) as failures:
                code = service_main(gateway.role)(gateway)
            if failures:
                raise failures[0]
            return code
        finally:
            fleet.stop([policy.name], policy.section.drain_seconds)


def _said(policy: PolicyTask, gateway: GatewayTask, port: int) -> str:
    at = gateway.listening
    scheme = "https" if at.http_tls else "http"
    address = f"{scheme}://{at.host}:{at.http_port}/v1" if at.http_port else "the address below"
    return f"{policy.model} as model {gateway.section.name!r}: OpenAI's API at {address}, gRPC at 127.0.0.1:{port}"


@contextmanager
def _watched(fleet: Fleet) -> Iterator[list[LodestarError]]:
    """Looks after the fleet on a thread; an error that ends it ends this process's service, too."""
    over, failures = threading.Event(), list[LodestarError]()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            try:
                fleet.check()
            except LodestarError as error:
                failures.append(error)
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, name="policy-watch")
    thread.start()
    try:
        yield failures
    finally:
        over.set()
        thread.join()
