"""Certificates change under load: no call is lost, and what comes after uses the new ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lodestar.client import AsyncPolicyClient, PolicyClient
from lodestar.errors import Unauthenticated
from lodestar.rpc.certificates import Authority
from lodestar.rpc.tls import TlsFolder

NAMES = ("policy", "rollout")


class Rotation:
    """The two ends' folders, moved from one authority to another as an operator would move them."""

    def __init__(self, root: Path, first: Authority) -> None:
        self._root = root
        self._trusted = [first]
        self._signer = first

    def renew(self) -> None:
        """New certificates of the present authority; the trusted ones stay as they are."""
        for name in NAMES:
            self._signer.issue(self._root / name, "worker", name, days=1)
            self._trust(name)

    def replace_authority(self) -> list[Callable[[], None]]:
        """The steps: trust both, sign with the new one, trust the new one alone."""
        new = Authority.create("the next authority")

        def trust_both() -> None:
            self._trusted.append(new)
            for name in NAMES:
                self._trust(name)

        def sign() -> None:
            self._signer = new
            self.renew()

        def trust_new() -> None:
            self._trusted = [new]
            for name in NAMES:
                self._trust(name)

        return [trust_both, sign, trust_new]

    def _trust(self, name: str) -> None:
        whole = self._root / name / ".ca.crt"
        whole.write_bytes(b"".join(authority.pem for authority in self._trusted))
        whole.replace(self._root / name / "ca.crt")


async def test_rotation_under_load_loses_no_call(guarded, fleet):
    rotation = Rotation(fleet.root, fleet.authority)
    stopping = asyncio.Event()
    answered = 0

    async def ask(client: AsyncPolicyClient) -> None:
        nonlocal answered
        while not stopping.is_set():
            assert await client.tokenize("hi") == (104, 105)
            answered += 1

    async def follow(client: AsyncPolicyClient) -> None:
        while not stopping.is_set():  # half a second each: they live through several changes
            generation = await client.generate("hi", max_tokens=40)
            assert len(generation.completions[0].token_ids) == 40

    async with AsyncPolicyClient(guarded.address, tls=fleet.root / "rollout") as client:
        load = [asyncio.create_task(work(client)) for work in (ask, ask, ask, follow, follow)]
        old = fleet.root / "retired"
        fleet.authority.issue(old, "worker", "retired", days=1)
        for step in (rotation.renew, rotation.renew, *rotation.replace_authority()):
            await asyncio.sleep(0.25)
            seen = answered
            await asyncio.to_thread(step)
            await asyncio.sleep(0.1)
            assert answered > seen
        stopping.set()
        await asyncio.gather(*load)
    async with AsyncPolicyClient(guarded.address, tls=old) as late:
        with pytest.raises(Unauthenticated, match="not signed by the authority in our"):
            await late.tokenize("hi")


def test_threads_share_a_client_through_a_rotation(guarded, fleet):
    rotation = Rotation(fleet.root, fleet.authority)
    stopping = threading.Event()
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            while not stopping.is_set():
                assert len(client.generate("hi", max_tokens=3).completions[0].token_ids) == 3
        except BaseException as error:
            failures.append(error)

    with PolicyClient(guarded.address, tls=fleet.root / "rollout") as client:
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for step in (rotation.renew, *rotation.replace_authority()):
            stopping.wait(0.2)
            step()
        stopping.wait(0.3)
        stopping.set()
        for thread in threads:
            thread.join(10)
    assert failures == []


def test_changed_files_that_cannot_be_used_leave_the_old_ones_in_use(fleet, caplog):
    folder = TlsFolder(fleet.root / "rollout")
    before = folder.material()
    fleet.folder("rollout", days=-1)
    assert folder.material() is before
    (fleet.root / "rollout" / "tls.key").write_bytes((fleet.root / "caller" / "tls.key").read_bytes())
    assert folder.material() is before
    assert folder.material() is before
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    fleet.folder("rollout")
    assert folder.material() is not before
