"""Publish → served: new weights from the learner's memory to a policy server's, against a plain socket copy.

Ours hashes, writes, streams, checks and verifies every byte; the copy is sendall on one end and recv_into on the other
of a loopback TCP socket, in two processes, with nothing checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from harness import alternate, median_ratio, parser, report
from lodestar_services.learner.publisher import WeightPublisher
from torch import Tensor, nn

from lodestar.config import LearnerTask, PpoConfig
from lodestar.records import WeightManifest, WeightVersion
from lodestar.weights.follower import WeightFollower
from lodestar.weights.grpc import GrpcSource


def _receive(port: int, size: int) -> None:
    buffer = memoryview(bytearray(size))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while True:
            got = 0
            while got < size:
                read = connection.recv_into(buffer[got:])
                if not read:
                    return
                got += read
            connection.sendall(b"!")


class SocketCopy:
    """The peer: the same bytes into another process's memory."""

    def __init__(self, size: int) -> None:
        self._data = torch.randint(0, 255, (size,), dtype=torch.uint8).numpy().data
        listener = socket.create_server(("127.0.0.1", 0))
        self._receiver = multiprocessing.get_context("spawn").Process(
            target=_receive, args=(listener.getsockname()[1], size), daemon=True
        )
        self._receiver.start()
        self._connection, _ = listener.accept()

    def seconds(self) -> float:
        began = time.perf_counter()
        self._connection.sendall(self._data)
        self._connection.recv(1)
        return time.perf_counter() - began


class Published:
    """Ours: publisher, its server process, and a follower that copies into live tensors as the engine does."""

    def __init__(self, size: int, root: Path) -> None:
        width = int((size / 4 / 8) ** 0.5)
        self._model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(8)))
        self._live = [torch.empty_like(parameter) for parameter in self._model.parameters()]
        self._publisher = WeightPublisher(root / "weights", run="bench", incarnation="0", tokenizer_hash="", keep=1)
        places = dict.fromkeys(("folder", "prompts", "state", "figures", "output"), root)
        task = LearnerTask(run="bench", ppo=PpoConfig(), policy="", reference="", **places)
        port = self._publisher.serve(task)
        self._step = 0
        self._served = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)  # the channel belongs to it
        follower = WeightFollower(
            GrpcSource(f"127.0.0.1:{port}", "bench"), root / "cache", "bench", WeightVersion("", 0, ""), self._apply
        )
        self._following = self._loop.create_task(follower.run())

    async def _apply(self, manifest: WeightManifest, tensors: Mapping[str, Tensor] | None) -> None:
        assert tensors is not None
        with torch.no_grad():
            for live, new in zip(self._live, tensors.values(), strict=True):
                live.copy_(new)
        self._served.set()

    def seconds(self) -> float:
        with torch.no_grad():
            next(self._model.parameters()).add_(1.0)
        self._step += 1
        self._served.clear()
        began = time.perf_counter()
        self._publisher.publish(self._model, self._step)
        self._loop.run_until_complete(self._served.wait())
        return time.perf_counter() - began

    def close(self) -> None:
        self._following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._following)
        self._publisher.close()


def main() -> None:
    arguments = parser(__doc__).parse_args()
    size = 2**20 if arguments.small else 100 * 2**20
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        peer, ours = SocketCopy(size), Published(size, Path(folder))
        alternate(1, peer=peer.seconds, ours=ours.seconds)
        figures = alternate(arguments.runs, peer=peer.seconds, ours=ours.seconds)
        ours.close()
    rows = [
        {"what": name, "seconds": statistics.median(values), "MB/s": size / 1e6 / statistics.median(values)}
        for name, values in (("socket copy", figures["peer"]), ("publish → served", figures["ours"]))
    ]
    ratio = median_ratio(figures["peer"], figures["ours"])
    report("weights", rows, arguments, f"publish → served runs at {ratio:.0%} of a plain socket copy of the same bytes")


if __name__ == "__main__":
    main()
