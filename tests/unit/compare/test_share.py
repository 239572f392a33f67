"""A stage that another run has made of the same is taken over; of anything else it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lodestar.compare.conduct import judged_anew
from lodestar.compare.share import take_over
from lodestar.config import RunConfig
from lodestar.local.board import Board, StageRow
from lodestar.recipe import plan as planning
from lodestar.recipe.conduct import Wanted, conduct
from lodestar.recipe.plan import Plan, Step, plan
from lodestar.recipe.stage import Bench, Kind, Stage
from lodestar.recipe.store import Store
from lodestar.train.progress import Silent


class Toy(Stage):
    """Writes what it took and its option."""

    word: str = "x"
    """Any."""

    def run(self, bench: Bench) -> None:
        took = [path.read_text() for port in bench.step.inputs for path in bench.take_all(port)]
        for port in bench.step.makes:
            bench.make(port).write_text(f"{bench.step.name}({self.word}; {', '.join(took)})")


class Rows(Toy):
    makes: ClassVar[Mapping[str, Kind]] = {"prompts": "prompts"}


class Learn(Toy):
    takes: ClassVar[Mapping[str, Any]] = {"start": ("model", "prompts")}
    makes: ClassVar[Mapping[str, Kind]] = {"policy": "model"}


class Look(Toy):
    takes: ClassVar[Mapping[str, Any]] = {"policy": "model"}
    makes: ClassVar[Mapping[str, Kind]] = {"figures": "figures"}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "registry", lambda: {"rows": Rows, "learn": Learn, "look": Look})


class Crew:
    """Runs stages at once and says which."""

    def __init__(self, run: RunConfig, made: Plan, store: Store) -> None:
        self._run, self._plan, self._store = run, made, store

    def serve(self, step: Step) -> dict[str, tuple[str, ...]]:
        return {}

    def work(self, step: Step, servers: Any) -> None:
        step.stage.run(Bench(self._run, self._plan, step, self._store, servers, Silent()))

    def figures(self, step: Step) -> dict[str, Any]:
        return {}

    def release(self) -> None: ...


def run_of(root: Path, seed: int = 0, **stages: Any) -> tuple[Store, Plan, Any]:
    run = RunConfig.model_validate({"name": root.name, "seed": seed, "stages": stages})
    made = plan(run)
    store = Store(root, run)
    board = Board(root.name, [StageRow(step.name) for step in made.steps])
    return store, made, lambda: conduct(made, store, Crew(run, made, store), board)


def test_stages_asked_alike_are_taken_over_with_their_seals_and_the_rest_is_made(tmp_path: Path) -> None:
    first, _, go = run_of(tmp_path / "a", rows={}, learn={}, more={"kind": "learn", "word": "y"}, look={})
    go()
    store, made, go = run_of(tmp_path / "b", rows={}, learn={}, more={"kind": "learn", "word": "z"}, look={})
    assert take_over(store, made, [first]) == ["rows", "learn"]
    assert go() == ["more", "look"]
    assert (tmp_path / "b/more/policy").read_text() == "more(z; learn(x; rows(x; )))"
    assert store.seal_of("learn") == first.seal_of("learn")
    assert go() == []


def test_what_took_something_else_is_made_anew(tmp_path: Path) -> None:
    first, _, go = run_of(tmp_path / "a", rows={"word": "other"}, learn={})
    go()
    store, made, go = run_of(tmp_path / "b", rows={}, learn={})
    assert take_over(store, made, [first]) == []
    go()
    third, made, _ = run_of(tmp_path / "c", rows={}, learn={})
    assert take_over(third, made, [first, store]) == ["rows", "learn"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"rows": {"word": "y"}}])
def test_another_seed_or_option_is_not_alike(tmp_path: Path, change: dict[str, Any]) -> None:
    first, _, go = run_of(tmp_path / "a", rows={})
    go()
    store, made, _ = run_of(tmp_path / "b", **{"rows": {}, **change})
    assert take_over(store, made, [first]) == []


def test_a_stage_that_has_begun_here_is_left(tmp_path: Path) -> None:
    first, _, go = run_of(tmp_path / "a", rows={})
    go()
    store, made, _ = run_of(tmp_path / "b", rows={})
    store.begin(made.step("rows"))
    assert take_over(store, made, [first]) == []


def test_an_evaluation_asked_otherwise_is_made_anew_and_training_is_not(tmp_path: Path) -> None:
    _, _, go = run_of(tmp_path / "a", rows={}, learn={}, look={})
    go()
    store, made, _ = run_of(tmp_path / "a", rows={}, learn={}, look={"word": "y"})
    assert judged_anew(made, store) == Wanted(begin="look")
    store, made, _ = run_of(tmp_path / "a", rows={}, learn={"word": "y"}, look={"word": "y"})
    assert judged_anew(made, store) == Wanted()
    store, made, _ = run_of(tmp_path / "a", rows={}, learn={}, look={})
    assert judged_anew(made, store) == Wanted()


def test_a_run_that_is_thrown_away_leaves_what_others_took_over(tmp_path: Path) -> None:
    first, planned, go = run_of(tmp_path / "a", rows={})
    go()
    store, made, _ = run_of(tmp_path / "b", rows={})
    take_over(store, made, [first])
    first.clear(planned.step("rows"))
    store.check_seals(made.steps)
    assert (tmp_path / "b/rows/prompts").read_text() == "rows(x; )"
