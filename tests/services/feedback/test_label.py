"""The stage that asks people, as the process that a crew starts: killed, resumed, its service killed under it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from lodestar.config.run import RunConfig
from lodestar.config.serve import Endpoints, Listening
from lodestar.crew.work import argument_of
from lodestar.data.files import read_feedback
from lodestar.errors import FailedPrecondition
from lodestar.files import write_jsonl
from lodestar.labelling import people
from lodestar.labelling.options import PeopleOptions
from lodestar.labelling.people import People
from lodestar.labelling.port import Asked, Question
from lodestar.local.board import Board, StageRow
from lodestar.local.progress import ProgressReader
from lodestar.recipe.store import Store
from lodestar.records import Choice, Feedback, Ranking
from tests.services.feedback.processes import Join, Running, answer

PROMPTS = 12


class Stage:
    """A stage's process over a run's folder, whose samples lie there."""

    def __init__(self, folder: Path, address: str) -> None:
        label = {"by": "people", "people": {"address": address, "overlap": 2, "instructions": "Take the *good* one."}}
        stages = {"data": {}, "sft": {}, "sample": {"n": 2}, "label": label | {"held_out_fraction": 0.3}}
        self.run = RunConfig.model_validate({"name": "asked", "runs_dir": str(folder), "stages": stages})
        self.store = Store(folder / "asked", self.run)
        rows = [
            {
                "ticket": f"0.{i}.0",
                "prompt": f"question {i}",
                "replies": [{"text": f"good {i}", "score": None}, {"text": f"bad {i}", "score": None}],
            }
            for i in range(PROMPTS)
        ]
        write_jsonl(self.store.path("sample/samples") / "samples.jsonl", rows)
        self.argument = folder / "argument.json"
        self.argument.write_text(
            json.dumps(argument_of(self.run, self.store, "label", {}, Endpoints(), Listening())), encoding="utf-8"
        )
        self.start()

    def start(self) -> None:
        self.reader = ProgressReader(self.store.root / "logs" / "label.jsonl")
        self.reader.forget()
        self.board = Board("asked", [StageRow("label")])
        command = [sys.executable, "-m", "lodestar.crew.work", str(self.argument)]
        self.process = subprocess.Popen(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
        )

    def until_it_says(self, text: str) -> str:
        """The sentence on the board that holds the text."""
        deadline = time.monotonic() + 60
        while True:
            self.board.progress("label", self.reader.new())
            for message in self.board.messages:
                if text in message.text:
                    return message.text
            assert self.process.poll() is None or not self.process.returncode, self.process.communicate()[1]
            assert time.monotonic() < deadline, [message.text for message in self.board.messages]
            time.sleep(0.05)

    def answers(self) -> list[Feedback]:
        files = sorted(self.store.path("label/feedback").glob("*.jsonl"))
        assert [path.stem for path in files] == ["evaluation", "held_out", "train"]
        return [row for path in files for row in read_feedback(path)]


def prefer_good(client: httpx.Client, campaign: str) -> None:
    html = client.get(f"/c/{campaign}").text
    assert "Take the <em>good</em> one." in html
    assert answer(client, campaign, "a2" if html.index(">good ") < html.index(">bad ") else "b2").status_code == 200


@pytest.mark.slow
def test_a_stage_asks_people_over_kills_of_itself_and_of_the_service_and_asks_nothing_twice(
    start: Callable[..., Running], join: Join, tmp_path: Path
) -> None:
    running = start()
    stage = Stage(tmp_path, running.address)
    link = stage.until_it_says(f"{PROMPTS} questions for people; judge at ").rpartition(" ")[2]
    campaign = link.rpartition("/")[2]
    assert campaign.startswith("asked.label.")
    ada, bob = (join(invite(running, name)) for name in ("ada", "bob"))
    for _ in range(5):
        prefer_good(ada, campaign)
    stage.process.kill()
    stage.process.communicate()
    prefer_good(ada, campaign)  # while nobody waits
    stage.start()
    assert stage.until_it_says("asked before; judge at").startswith(
        f"label: {PROMPTS} questions for people, which were asked before; judge at {link}"
    )
    stage.until_it_says(f"6 of {2 * PROMPTS} judgements by 1 person")
    running.kill()
    stage.until_it_says("does not answer; waiting for it")
    running.start()
    stage.until_it_says("answers again")
    for _ in range(PROMPTS - 6):
        prefer_good(ada, campaign)
    for _ in range(PROMPTS):
        prefer_good(bob, campaign)
    assert stage.process.wait(60) == 0, stage.process.communicate()[1]
    stage.process.communicate()
    stage.until_it_says(f"{campaign}: {2 * PROMPTS} of {2 * PROMPTS} judgements by 2 people")
    assert stage.board.stage("label").fraction == 1.0
    answers = stage.answers()
    assert len(answers) == len({row.id for row in answers}) == 2 * PROMPTS
    for name in ("ada", "bob"):
        assert sorted(row.prompt for row in answers if row.annotator == name) == sorted(
            f"question {i}" for i in range(PROMPTS)
        )
    assert all(_preferred(row).startswith("good") for row in answers)
    counts = json.loads((stage.store.path("label/figures") / "label.json").read_text())
    assert (counts["by"], counts["questions"], counts["answers"]) == ("people", PROMPTS, 2 * PROMPTS)
    assert asyncio.run(closed(running, campaign)), "what is judged is closed"


def _preferred(row: Feedback) -> str:
    (choice,) = row.verdict
    assert isinstance(choice, Choice)
    return row.completions[choice.first if choice.label == 1 else choice.second]


def invite(running: Running, name: str) -> str:
    async def ask() -> str:
        async with running.client() as client:
            return await client.invite(name)

    return asyncio.run(ask())


async def closed(running: Running, campaign: str) -> bool:
    async with running.client() as client:
        return (await client.progress(campaign)).closed


class Asking:
    """A labeller on a thread of its own."""

    def __init__(self, options: PeopleOptions, questions: list[Question], folder: Path) -> None:
        self.said: list[str] = []
        self.done = 0
        self.outcome: Any = None
        self._labeller = People(Asked(0, None, folder, people=options, of="r.label", say=self.said.append))
        self._questions = questions
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            self.outcome = self._labeller.label(self._questions, self._advance)
        except FailedPrecondition as error:
            self.outcome = error

    def _advance(self, amount: int) -> None:
        self.done += amount

    def campaign(self) -> str:
        deadline = time.monotonic() + 20
        while not self.said:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self.said[0].rpartition("/")[2]

    def result(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.outcome


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks that come quickly."""
    monkeypatch.setattr(people, "AGAIN_SECONDS", 0.05)


QUESTIONS = [Question(f"0.{i}.0-0", f"question {i}", (f"good {i}", f"bad {i}", f"odd {i}")) for i in range(2)]


@pytest.mark.usefixtures("often")
def test_a_ranking_of_all_replies_comes_home_and_what_others_add_to_the_campaign_does_not(
    start: Callable[..., Running], join: Join, tmp_path: Path
) -> None:
    from lodestar.feedback import Item
    from lodestar.labelling.people import campaign_of

    running = start()
    options = PeopleOptions(address=running.address, form="ranking")
    asking = Asking(options, QUESTIONS, tmp_path)
    name = asking.campaign()
    items = [Item(one.id, one.prompt, one.replies) for one in QUESTIONS]
    asyncio.run(add(running, campaign_of("r.label", options, items), Item("other", "another", ("x", "y"))))
    ada = join(invite(running, "ada"))
    for _ in range(3):
        html = ada.get(f"/c/{name}").text
        hidden = dict(
            part.split('" value="')
            for part in (one.split('">')[0] for one in html.split('<input type="hidden" name="')[1:])
        )
        count = 2 if "another" in html else 3
        places = {f"place.{i}": str(i + 1) for i in range(count)}
        assert ada.post(f"/c/{name}", data=hidden | {"do": "send"} | places).status_code == 200
    rows = asking.result()
    assert {row.prompt for row in rows} == {"question 0", "question 1"}
    assert all(isinstance(row.verdict, Ranking) for row in rows)
    assert asking.done == 3


async def add(running: Running, campaign: Any, item: Any) -> None:
    async with running.client() as client:
        await client.add_items(campaign, [item])


@pytest.mark.usefixtures("often")
def test_a_campaign_that_a_lead_closes_gives_what_was_answered_or_says_that_nothing_was(
    start: Callable[..., Running], join: Join, tmp_path: Path
) -> None:
    running = start()
    pairs = [Question(one.id, one.prompt, one.replies[:2]) for one in QUESTIONS]
    options = PeopleOptions(address=running.address)
    asking = Asking(options, pairs, tmp_path)
    ada = join(invite(running, "ada"))
    answer(ada, asking.campaign(), "a2")
    asyncio.run(close(running, asking.campaign()))
    (row,) = asking.result()
    assert row.annotator == "ada"
    (again,) = Asking(options, pairs, tmp_path).result()
    assert again == row, "the same questions again: the same answers, and nobody is asked"
    other = Asking(options.model_copy(update={"instructions": "Anew."}), pairs, tmp_path)
    asyncio.run(close(running, other.campaign()))
    assert "was closed before anybody had answered" in str(other.result())


async def close(running: Running, campaign: str) -> None:
    async with running.client() as client:
        await client.close_campaign(campaign)
