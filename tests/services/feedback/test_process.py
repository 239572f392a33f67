"""The process as it is started: gRPC beside the page, a lead's link, leaving and coming back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lodestar_services.feedback.__main__ import listen
from lodestar_services.feedback.maintenance import invite
from pydantic import ValidationError
from typer.testing import CliRunner

from lodestar.cli.app import app
from lodestar.errors import ConfigError, FailedPrecondition, InvalidArgument
from lodestar.feedback import AsyncFeedbackClient, Campaign, Item, PairVerdict
from lodestar.preference.ranking.duels import Duels
from lodestar.preference.ranking.judges import Asked, Replies
from lodestar.records import Choice, Feedback
from tests.services.feedback.processes import Join, Running, answer, task

PAIRS = [Item(str(i), f"question {i}", (f"good {i}", f"bad {i}")) for i in range(4)]


async def test_a_program_asks_people_and_takes_their_answers_home(start: Callable[..., Running], join: Join) -> None:
    running = start()
    campaign = Campaign(name="r1.label", form="pair", strength=False)
    async with running.client() as people:
        added = await people.add_items(campaign, PAIRS)
        assert (added.added, added.known, added.link) == (4, 0, f"{running.link}/c/r1.label")
        assert (await people.add_items(campaign, PAIRS)).known == 4
        with pytest.raises(FailedPrecondition, match="other content"):
            await people.add_items(campaign, [Item("1", "another", ("x", "y"))])
        with pytest.raises(InvalidArgument, match=r"items\[0\].completions"):
            await people.add_items(campaign, [Item("9", "q", ("x",))])
        with pytest.raises(InvalidArgument, match="no campaign 'none'"):
            await people.progress("none")
        seen = asyncio.ensure_future(_first(people, "r1.label", 4))
        waiting = asyncio.ensure_future(people.finished("r1.label"))
        ada = join(await people.invite("ada"))
        for _ in range(4):
            await asyncio.to_thread(answer, ada, "r1.label", "a")
        progress = await asyncio.wait_for(waiting, 30)
        assert (progress.done, progress.wanted, progress.people, progress.finished) == (4, 4, 1, True)
        assert "4 of 4 judgements by 1 person" in str(progress)
        assert [one.position for one in await asyncio.wait_for(seen, 30)] == [1, 2, 3, 4]
        found = await people.feedback("r1.label")
        assert all(isinstance(one, Feedback) and isinstance(one.verdict[0], Choice) for one in found)
        assert (await people.close_campaign("r1.label")).closed
        assert [one.position async for one in people.watch("r1.label", after=2)] == [3, 4]


async def _first(people: AsyncFeedbackClient, campaign: str, count: int) -> list[Any]:
    found = []
    async for one in people.watch(campaign):
        found.append(one)
        if len(found) == count:
            break
    return found


async def test_a_kill_loses_no_answer_and_a_waiting_stage_waits_on(start: Callable[..., Running], join: Join) -> None:
    running = start()
    async with running.client() as people:
        await people.add_items(Campaign(name="p", form="pair"), PAIRS)
        waiting = asyncio.ensure_future(people.finished("p"))
        ada = join(await people.invite("ada"))
        for _ in range(2):
            assert (await asyncio.to_thread(answer, ada, "p", "a2")).status_code == 200
            running.kill()
            await asyncio.to_thread(running.start)
        assert not waiting.done()
        for _ in range(2):
            await asyncio.to_thread(answer, ada, "p", "b2")
        assert (await asyncio.wait_for(waiting, 30)).done == 4
        assert len({row["id"] for row in await people.rows("p")}) == 4


async def test_a_watcher_hears_that_work_was_set_aside(start: Callable[..., Running], join: Join) -> None:
    running = start()
    async with running.client() as people:
        await people.add_items(Campaign(name="p", form="pair"), PAIRS[:1])
        ada, lead = join(await people.invite("ada")), join((running.folder / "lead.link").read_text().strip())
        await asyncio.to_thread(answer, ada, "p", "a2")
        csrf = lead.get("/lead/c/p").text.split('name="csrf" value="')[1].split('"')[0]
        lead.post("/lead/c/p/aside", data={"csrf": csrf, "name": "ada", "reason": "tired"})
        changes = await _first(people, "p", 1)
        assert [(one.set_aside, one.verdict.form) for one in changes] == [("tired (lead)", "pair")]
        assert (await people.progress("p")).done == 0
        bob = join(await people.invite("bob"))
        await asyncio.to_thread(answer, bob, "p", "b2")
        lead.post("/lead/c/p/restore", data={"csrf": csrf, "name": "ada"})
        assert (await people.progress("p")).done == 2, "taken back in: one more than was wanted"


def test_the_first_leads_link_is_in_a_file_for_its_owner_and_in_no_log(
    start: Callable[..., Running], join: Join
) -> None:
    running = start()
    path = running.folder / "lead.link"
    assert path.stat().st_mode & 0o777 == 0o600
    link = path.read_text().strip()
    assert join(link).get("/lead").status_code == 200
    another = invite(running.folder, "eve", lead=False, database=None, link=None)
    assert another.startswith(f"{running.link}/join/")
    join(another)
    token = link.rpartition("/")[2]
    assert running.stop() == 0
    assert token not in running.log
    assert "/join/" not in running.log
    assert os.environ.get("LODESTAR_LOG", "INFO") == "INFO", "what this test means to look at"


def test_a_backup_taken_while_people_answer_is_whole_and_can_be_restored(
    start: Callable[..., Running], join: Join, tmp_path: Path
) -> None:
    running = start()
    people = Client(running.address)
    people.add(Campaign(name="p", form="pair"), PAIRS)
    ada = join(people.invite("ada"))
    answer(ada, "p", "a2")
    folder, copies = str(running.folder), tmp_path / "copies"
    for _ in range(3):
        said = CliRunner().invoke(app, ["feedback", "backup", folder, str(copies), "--keep", "1"])
        assert said.exit_code == 0, said.output
    answer(ada, "p", "b2")
    (copy,) = copies.glob("feedback-*.sqlite")
    assert copy.stat().st_mode & 0o777 == 0o600
    restored = tmp_path / "restored"
    restored.mkdir()
    copy.replace(restored / "feedback.sqlite")
    assert len(rows_of(restored)) == 1
    assert len(rows_of(running.folder)) == 2


def rows_of(folder: Path) -> list[str]:
    """As the command line exports them."""
    said = CliRunner().invoke(app, ["feedback", "export", str(folder), "p"])
    assert said.exit_code == 0, said.output
    return said.output.splitlines()


class Client:
    """A few blocking calls."""

    def __init__(self, address: str) -> None:
        self._address = address

    def add(self, campaign: Campaign, items: list[Item]) -> None:
        asyncio.run(self._add(campaign, items))

    async def _add(self, campaign: Campaign, items: list[Item]) -> None:
        async with AsyncFeedbackClient(self._address) as people:
            await people.add_items(campaign, items)

    def invite(self, name: str) -> str:
        return asyncio.run(self._invite(name))

    async def _invite(self, name: str) -> str:
        async with AsyncFeedbackClient(self._address) as people:
            return await people.invite(name)


def test_people_decide_duels_on_the_page(start: Callable[..., Running], join: Join) -> None:
    running = start()
    replies = Replies(
        {"good": {f"q{i}": f"good {i}" for i in range(30)}, "bad": {f"q{i}": f"bad {i}" for i in range(30)}}
    )
    judge = Asked(
        replies, lambda: AsyncFeedbackClient(running.address), Campaign(name="duel", form="pair", strength=False)
    )
    people = Client(running.address)
    people.add(Campaign(name="duel", form="pair", strength=False), [])
    ada = join(people.invite("ada"))
    duels = Duels(("good", "bad"), seed=1)
    stopping = threading.Event()

    def answers() -> None:
        while not stopping.is_set():
            html = ada.get("/c/duel").text
            if "Which reply" in html:
                answer(ada, "duel", "a" if html.index("good ") < html.index("bad ") else "b")
            else:
                time.sleep(0.05)

    person = threading.Thread(target=answers)
    person.start()
    try:
        while not duels.settled and duels.told < 40:
            pairs = [duels.propose() for _ in range(5)]
            labels = judge.judge([(duels.names[first], duels.names[second]) for first, second in pairs])
            for (first, second), label in zip(pairs, labels, strict=True):
                duels.tell(first, second, label)
    finally:
        stopping.set()
        person.join()
    assert duels.winners == ("good",)


def test_an_open_address_needs_tls(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"page_host: 0\.0\.0\.0 is reachable .* give page_tls"):
        listen(task(tmp_path, page_host="0.0.0.0"))


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with listen(task(tmp_path)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"page_port: cannot listen on 127.0.0.1:{port}"):
            listen(task(tmp_path, page_port=port))


def test_a_page_that_starts_again_is_where_it_was_unless_somebody_else_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with listen(task(tmp_path)) as first:
        port = first.getsockname()[1]
        (tmp_path / "page.json").write_text(f'{{"link": "http://127.0.0.1:{port}", "port": {port}}}')
        with listen(task(tmp_path)) as second:
            assert second.getsockname()[1] != port
        assert f"the page's last port, {port}, cannot be had" in caplog.text
    with listen(task(tmp_path)) as again:
        assert again.getsockname()[1] == port


def test_a_password_in_an_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="LODESTAR_FEEDBACK_DATABASE"):
        task(tmp_path, database="postgresql://ada:secret@host/name")


def test_gold_answers_travel(tmp_path: Path) -> None:
    from lodestar.feedback import wire

    item = Item("g", "q", ("x", "y"), ("m", "n"), 2.5, "gold", PairVerdict(label=0.0, strength=3), "why", "few_shot")
    assert wire.item_from_proto(wire.item_to_proto(item), "items[0]") == item


def test_lodestar_serve_is_the_page_of_a_folder_and_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: run\n")
    for folder, place in ((tmp_path / "campaigns", tmp_path / "campaigns"), (run, run / "feedback")):
        command = [Path(sys.executable).parent / "lodestar", "serve", "feedback", str(folder), "lead=lena"]
        served = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert served.stderr is not None
        try:
            deadline = time.monotonic() + 120
            while not (place / "lead.link").exists() or not (place / "page.json").exists():
                assert served.poll() is None, served.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            said = CliRunner().invoke(app, ["feedback", "invite", str(folder), "ada"])
            assert "/join/" in said.output
        finally:
            served.terminate()
            assert served.wait(30) == 0
            served.stderr.close()
        assert not (folder / "feedback.sqlite").exists() or folder == place


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("pages=1", "pages: Extra inputs"),
        ("page_port=70000", "page_port: Input should be less than or equal to 65535"),
        ("link=judge.example.com", "link: String should match"),
        ("database=postgresql://ada:secret@host/name", "database: holds a password"),
    ],
)
def test_a_bad_option_is_named(option: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        CliRunner().invoke(app, ["serve", "feedback", str(tmp_path / "x"), option], catch_exceptions=False)
    assert "secret" not in str(refused.value)
