"""Weights from a publisher, through its server process and a real socket, to a follower."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lodestar_services.learner.publisher import WeightPublisher
from torch import Tensor, nn

from lodestar import metrics
from lodestar.config import LearnerConfig, LearnerTask, Listening, PpoConfig
from lodestar.errors import FailedPrecondition, InvalidArgument, ModelError, PermissionDenied, Unavailable
from lodestar.model.weights import named_tensors
from lodestar.records import TensorFile, WeightManifest, WeightVersion
from lodestar.rpc import channel, convert
from lodestar.rpc.certificates import Authority
from lodestar.v1 import weights_pb2
from lodestar.weights.directory import WeightDirectory
from lodestar.weights.follower import WeightFollower
from lodestar.weights.grpc import GrpcSource
from lodestar.weights.port import WeightSource
from lodestar.weights.tensors import load_verified

NOTHING = WeightVersion("", 0, "")


class DirectorySource:
    """Weights without a server between: for what a follower does with any source."""

    def __init__(self, root: Path) -> None:
        self._directory = WeightDirectory(root)

    async def watch(self) -> AsyncIterator[WeightManifest]:
        """Polls the announcement; see WeightSource.watch."""
        seen: WeightManifest | None = None
        while True:
            manifest = self._directory.announced()
            if manifest is not None and manifest != seen:
                seen = manifest
                yield manifest
            await asyncio.sleep(0.05)

    async def fetch(self, version: WeightVersion, file: TensorFile) -> AsyncGenerator[bytes, None]:
        """The file in one piece; see WeightSource.fetch."""
        path = self._directory.folder(version) / file.name
        try:
            yield await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            raise Unavailable(f"weights {version.step} are gone from {path.parent}") from None

    async def report(self, version: WeightVersion, refusal: str) -> None:
        """Nobody to tell."""

    async def close(self) -> None:
        """Nothing to close."""


class Served:
    """What a policy server would do with new weights: remember them."""

    def __init__(self) -> None:
        self.versions: list[WeightVersion] = []
        self.tensors: Mapping[str, Tensor] | None = None
        self.news = asyncio.Event()

    def held(self) -> Mapping[str, Tensor]:
        """What is served now."""
        return self.tensors or {}

    async def apply(self, manifest: WeightManifest, tensors: Mapping[str, Tensor] | None) -> None:
        self.versions.append(manifest.version)
        self.tensors = tensors
        self.news.set()

    async def next(self) -> WeightVersion:
        await asyncio.wait_for(self.news.wait(), 20)
        self.news.clear()
        return self.versions[-1]


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(300, 900), nn.Linear(900, 7))


def publisher(root: Path, incarnation: str = "aaaa") -> WeightPublisher:
    section = LearnerConfig(weight_versions=2, full_weights_every=3)
    return WeightPublisher(root, run="here", incarnation=incarnation, tokenizer_hash="t0", section=section)


def options(folder: Path, port: int = 0, **listening: Any) -> LearnerTask:
    return LearnerTask(
        run="here",
        folder=folder,
        listening=Listening(weights_port=port, **listening),
        ppo=PpoConfig(),
        policy="",
        reference="",
        prompts=folder,
        state=folder,
        figures=folder,
        output=folder,
    )


@pytest.fixture
def learner(tmp_path: Path) -> Iterator[tuple[WeightPublisher, int]]:
    started = publisher(tmp_path / "weights")
    port = started.serve(options(tmp_path))
    yield started, port
    started.close()


def follower(source: WeightSource, tmp_path: Path, served: Served, run: str = "here") -> WeightFollower:
    return WeightFollower(source, tmp_path / "cache", run, NOTHING, served.apply, served.held)


async def test_a_follower_serves_every_announced_version_bit_for_bit(learner, tmp_path):
    published, port = learner
    source, served = GrpcSource(f"127.0.0.1:{port}", "here"), Served()
    following = asyncio.create_task(follower(source, tmp_path, served).run())
    for step in (0, 1, 2):
        module = model(step)
        manifest = await asyncio.to_thread(published.publish, module, step)
        assert await served.next() == manifest.version
        assert served.tensors is not None
        for name, tensor in named_tensors(module).items():
            assert torch.equal(served.tensors[name], tensor)
    following.cancel()
    await source.close()


async def test_equal_weights_are_relabelled_without_being_fetched(learner, tmp_path):
    published, port = learner
    source, served = GrpcSource(f"127.0.0.1:{port}", "here"), Served()
    first = published.publish(model(0), 0)
    following = asyncio.create_task(
        WeightFollower(
            source, tmp_path / "cache", "here", WeightVersion("", 0, first.version.digest), served.apply, served.held
        ).run()
    )
    assert await served.next() == first.version
    assert served.tensors is None
    following.cancel()
    await source.close()


async def test_a_resumed_learner_on_the_same_port_is_followed_backwards(tmp_path):
    first = publisher(tmp_path / "weights")
    port = first.serve(options(tmp_path))
    first.publish(model(5), 5)
    source, served = GrpcSource(f"127.0.0.1:{port}", "here"), Served()
    following = asyncio.create_task(follower(source, tmp_path, served).run())
    assert (await served.next()).step == 5
    await asyncio.to_thread(first.close)
    second = publisher(tmp_path / "weights", incarnation="bbbb")
    await asyncio.to_thread(second.serve, options(tmp_path, port))
    await asyncio.to_thread(second.publish, model(3), 3)
    assert await served.next() == WeightVersion("bbbb", 3, served.versions[-1].digest)
    following.cancel()
    await source.close()
    second.close()


async def test_a_killed_weights_server_comes_back_with_the_next_version(learner, tmp_path):
    published, port = learner
    published.publish(model(0), 0)
    source, served = GrpcSource(f"127.0.0.1:{port}", "here"), Served()
    following = asyncio.create_task(follower(source, tmp_path, served).run())
    await served.next()
    published.server.kill()
    published.server.wait()
    await asyncio.to_thread(published.publish, model(1), 1)
    assert (await served.next()).step == 1
    following.cancel()
    await source.close()


async def test_another_runs_learner_is_refused(learner):
    _, port = learner
    source = GrpcSource(f"127.0.0.1:{port}", "elsewhere")
    with pytest.raises(FailedPrecondition, match="'here', not 'elsewhere'"):
        await anext(aiter(source.watch()))
    await source.close()


async def test_the_last_verified_version_is_served_while_the_learner_is_away(learner, tmp_path):
    published, port = learner
    manifest = published.publish(model(4), 4)
    source, served = GrpcSource(f"127.0.0.1:{port}", "here"), Served()
    following = asyncio.create_task(follower(source, tmp_path, served).run())
    await served.next()
    following.cancel()
    await source.close()
    await asyncio.to_thread(published.close)
    restarted = Served()
    await follower(GrpcSource("127.0.0.1:1", "here"), tmp_path, restarted).restore()
    assert restarted.versions == [manifest.version]


async def test_a_directory_is_a_source_too(tmp_path):
    published = publisher(tmp_path / "weights")
    manifest = published.publish(model(0), 0)
    served = Served()
    following = asyncio.create_task(follower(DirectorySource(tmp_path / "weights"), tmp_path, served).run())
    assert await served.next() == manifest.version
    following.cancel()


async def test_only_announced_files_can_be_fetched(learner):
    published, port = learner
    manifest = published.publish(model(0), 0)
    source = GrpcSource(f"127.0.0.1:{port}", "here")
    version = convert.weight_version_to_proto(manifest.version)

    async def fetch(**fields):
        request = weights_pb2.FetchRequest(**fields)
        async for _ in source._client._connection.stream("Fetch", request, 5, lambda chunk: chunk):
            pass

    with pytest.raises(InvalidArgument, match=r"file: '../../config.yaml' is none of model.safetensors"):
        await fetch(version=version, file="../../config.yaml")
    with pytest.raises(InvalidArgument, match="offset"):
        await fetch(version=version, file="model.safetensors", offset=10**12)
    old = weights_pb2.FetchRequest(version=version).version
    old.step = 7
    with pytest.raises(Unavailable, match="no longer announced"):
        await fetch(version=old, file="model.safetensors")
    await source.close()


def test_damaged_weights_are_refused_by_name(tmp_path):
    published = publisher(tmp_path / "weights")
    manifest = published.publish(model(0), 0)
    folder = tmp_path / "weights" / "aaaa-0"
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="1 tensors differ"):
        load_verified(WeightDirectory(tmp_path / "weights"), manifest, manifest.chain, {})


def test_old_versions_are_deleted_and_manifests_are_readable(tmp_path):
    published = publisher(tmp_path / "weights")
    for step in range(4):
        published.publish(model(step), step)
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["aaaa-2", "aaaa-3", "announced.json"]
    assert json.loads((tmp_path / "weights" / "announced.json").read_text())["version"]["step"] == "3"


async def test_a_weights_server_has_health_and_says_what_it_sent(learner, tmp_path):
    published, port = learner
    manifest = published.publish(model(0), 0)
    sent = metrics.WEIGHT_BYTES_SENT._value.get()
    assert await asyncio.to_thread(channel.serving, f"127.0.0.1:{port}", "lodestar.v1.WeightsService")
    source, served = GrpcSource(f"127.0.0.1:{port}", "here"), Served()
    following = asyncio.create_task(follower(source, tmp_path, served).run())
    await served.next()
    total = sum(files.bytes for files in manifest.chain)
    deadline = time.monotonic() + 5
    while metrics.WEIGHT_BYTES_SENT._value.get() < sent + total:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert metrics.WEIGHT_BYTES_SENT._value.get() == sent + total
    following.cancel()
    await source.close()


async def test_weights_travel_over_mutual_tls_to_the_fleet_alone(tmp_path):
    authority = Authority.create()
    for name, role in (("learner", "worker"), ("policy", "worker"), ("stranger", "caller")):
        authority.issue(tmp_path / name, role, name)
    published = publisher(tmp_path / "weights")
    told = options(tmp_path, tls=tmp_path / "learner")
    address = f"127.0.0.1:{await asyncio.to_thread(published.serve, told)}"
    await asyncio.to_thread(published.publish, model(0), 0)
    source, served = GrpcSource(address, "here", tls=tmp_path / "policy"), Served()
    following = asyncio.create_task(follower(source, tmp_path, served).run())
    assert (await served.next()).step == 0
    following.cancel()
    await source.close()
    stranger = GrpcSource(address, "here", tls=tmp_path / "stranger")
    with pytest.raises(PermissionDenied, match=r"stranger is a caller, and .*/Watch is for: worker"):
        await anext(aiter(stranger.watch()))
    await stranger.close()
    await asyncio.to_thread(published.close)


async def test_a_weights_server_killed_before_anybody_fetched_is_started_again(learner, tmp_path):
    published, port = learner
    manifest = await asyncio.to_thread(published.publish, model(1), 1)
    published.server.kill()
    published.server.wait()
    await asyncio.to_thread(published.keep_serving)
    source, served = GrpcSource(f"127.0.0.1:{port}", "here"), Served()
    following = asyncio.create_task(follower(source, tmp_path, served).run())
    assert await served.next() == manifest.version
    following.cancel()
    await source.close()


@pytest.mark.parametrize("file", ["aaaa-4/model.safetensors", "announced.json"])
@pytest.mark.parametrize("left", [0, 5, 200])
async def test_a_damaged_cache_is_not_served_and_does_not_stop_the_server(tmp_path, file, left):
    cache = tmp_path / "weights"
    publisher(cache).publish(model(4), 4)
    (cache / file).write_bytes((cache / file).read_bytes()[:left])
    served = Served()
    await WeightFollower(DirectorySource(tmp_path), cache, "here", NOTHING, served.apply, served.held).restore()
    assert served.versions == []


async def test_a_disk_that_was_full_is_told_and_tried_again(tmp_path):
    published = publisher(tmp_path / "weights")
    manifest = published.publish(model(4), 4)

    class FullAtFirst(DirectorySource):
        told = ""

        async def fetch(self, version: WeightVersion, file: TensorFile) -> AsyncGenerator[bytes, None]:
            if not self.told:
                self.told = "once"
                raise OSError(28, "No space left on device")
            self.told = following.refusal
            async for data in super().fetch(version, file):
                yield data

    source, served = FullAtFirst(tmp_path / "weights"), Served()
    following = follower(source, tmp_path, served)
    running = asyncio.create_task(following.run())
    assert await served.next() == manifest.version
    assert "No space left on device" in source.told
    await asyncio.sleep(0)
    assert following.refusal == ""
    running.cancel()


async def test_stopping_lets_a_swap_end_that_a_newer_version_waits_for(tmp_path):
    published = publisher(tmp_path / "weights")
    published.publish(model(1), 1)
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def apply(manifest: WeightManifest, tensors: Mapping[str, Tensor] | None) -> None:
        begun.set()
        await may_end.wait()
        ended.set()

    source = DirectorySource(tmp_path / "weights")
    following = asyncio.create_task(WeightFollower(source, tmp_path / "cache", "here", NOTHING, apply, dict).run())
    await asyncio.wait_for(begun.wait(), 10)
    published.publish(model(2), 2)
    await asyncio.sleep(0.3)  # the follower has heard of it and waits for the swap
    following.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(following, 10)
    assert ended.is_set()
