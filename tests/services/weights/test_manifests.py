"""Weight manifests name files: plain ones, of the size announced, and nothing else is written or read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from lodestar.errors import ModelError
from lodestar.records import TensorFile, WeightFiles, WeightManifest, WeightVersion
from lodestar.weights.checks import check_manifest
from lodestar.weights.directory import read_manifest, write_manifest
from lodestar.weights.follower import WeightFollower


def manifest(*files: TensorFile, incarnation: str = "9f31c2aa") -> WeightManifest:
    version = WeightVersion(incarnation, 3, "d")
    return WeightManifest("demo", version, (WeightFiles(version, files),), {}, "tok")


def test_plain_names_are_taken() -> None:
    for name in ("model.safetensors", "model-00001-of-00002.safetensors"):
        assert check_manifest(manifest(TensorFile(name, 5)))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/cron.d/x.safetensors", "../model.safetensors", "a/b.safetensors", "..", ".hidden.safetensors", "",
        "model.safetensors\n", "model.bin", "manifest.json", "x" * 300 + ".safetensors", "a\\b.safetensors",
        "nul\0.safetensors",
    ],
)  # fmt: skip
def test_a_name_that_is_a_path_or_another_file_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="no plain name"):
        check_manifest(manifest(TensorFile(name, 5)))
    write_manifest(tmp_path / "manifest.json", manifest(TensorFile(name, 5)))
    with pytest.raises(ModelError, match="no plain name"):
        read_manifest(tmp_path / "manifest.json")


def test_sizes_counts_and_incarnations_are_bounded() -> None:
    with pytest.raises(ModelError, match="a size of 0 bytes"):
        check_manifest(manifest(TensorFile("a.safetensors", 0)))
    with pytest.raises(ModelError, match="names a file twice"):
        check_manifest(manifest(TensorFile("a.safetensors", 1), TensorFile("a.safetensors", 1)))
    with pytest.raises(ModelError, match="names 1001 files"):
        check_manifest(manifest(*(TensorFile(f"{i}.safetensors", 1) for i in range(1001))))
    with pytest.raises(ModelError, match=r"incarnation '\.\./\.\.' is no plain word"):
        check_manifest(manifest(TensorFile("a.safetensors", 1), incarnation="../.."))


async def test_a_follower_fetches_nothing_under_a_name_that_is_a_path(tmp_path: Path) -> None:
    class Hostile:
        """Announces once and would write what it is asked for."""

        fetched = False

        async def watch(self) -> AsyncIterator[WeightManifest]:
            yield manifest(TensorFile("../../evil.safetensors", 5))
            await asyncio.Event().wait()

        async def fetch(self, version: WeightVersion, file: TensorFile) -> AsyncGenerator[bytes, None]:
            Hostile.fetched = True
            yield b""

        async def report(self, version: WeightVersion, refusal: str) -> None: ...

        async def close(self) -> None: ...

    async def apply(*_: object) -> None:
        raise AssertionError("nothing is to be served")

    follower = WeightFollower(Hostile(), tmp_path / "cache", "demo", WeightVersion("", 0, "other"), apply, dict)
    await follower.restore()
    following = asyncio.create_task(follower.run())
    while not follower.refusal:
        await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.wait([following])
    assert "no plain name" in follower.refusal
    assert not Hostile.fetched
