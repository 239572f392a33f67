"""The conductor over toy stages in this process: what is kept, what is refused, what a kill leaves."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lodestar.config import RunConfig
from lodestar.errors import ConfigError, FailedPrecondition, ResumeRefused
from lodestar.local.board import Board, StageRow
from lodestar.recipe import plan as planning
from lodestar.recipe import store as storing
from lodestar.recipe.conduct import Wanted, conduct
from lodestar.recipe.folder import refuse_old
from lodestar.recipe.plan import Plan, Step, plan
from lodestar.recipe.stage import Bench, Kind, Stage
from lodestar.recipe.store import Store
from lodestar.train.progress import Silent


class Killed(BaseException):
    """What SIGKILL would be."""


class Toy(Stage):
    """Writes what it took and its options."""

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


STAGES: dict[str, type[Stage]] = {"rows": Rows, "learn": Learn, "look": Look}
CHAIN = {"rows": {}, "rounds": {"n": 2, "stages": {"learn": {}}}, "look": {}}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "registry", lambda: STAGES)


class Crew:
    """Runs stages at once; dies where it is told to."""

    def __init__(self, run: RunConfig, made: Plan, store: Store) -> None:
        self._run, self._plan, self._store = run, made, store
        self.dies_in = ""
        self.worked: list[str] = []

    def serve(self, step: Step) -> dict[str, tuple[str, ...]]:
        return {}

    def work(self, step: Step, servers: Any) -> None:
        self.worked.append(step.name)
        step.stage.run(Bench(self._run, self._plan, step, self._store, servers, Silent()))
        if step.name == self.dies_in:
            raise Killed

    def figures(self, step: Step) -> dict[str, Any]:
        return {}

    def release(self) -> None: ...


def start(
    root: Path, stages: dict[str, Any] | None = None, *, dies_in: str = "", wanted: Wanted | None = None, **run: Any
) -> list[str]:
    """One start of a conductor; the stages that ran."""
    config = RunConfig.model_validate({"name": "t", "stages": stages or CHAIN, **run})
    made, board = plan(config), Board("t", [])
    board.stages.extend(StageRow(step.name) for step in made.steps)
    store = Store(root, config)
    crew = Crew(config, made, store)
    crew.dies_in = dies_in
    conduct(made, store, crew, board, wanted or Wanted())
    return crew.worked


def rounds(n: int, **learn: Any) -> dict[str, Any]:
    return {**CHAIN, "rounds": {"n": n, "stages": {"learn": learn}}}


def test_every_stage_runs_once_and_takes_what_the_plan_says(tmp_path: Path) -> None:
    assert start(tmp_path) == ["rows", "r1.learn", "r2.learn", "look"]
    assert (tmp_path / "look" / "figures").read_text() == "look(x; r2.learn(x; r1.learn(x; rows(x; ))))"
    assert start(tmp_path) == []


def test_a_third_round_added_to_a_finished_run_runs_that_round_and_the_evaluation_alone(tmp_path: Path) -> None:
    start(tmp_path, rounds(2))
    assert start(tmp_path, rounds(3)) == ["r3.learn", "look"]


def test_a_run_folder_that_was_moved_goes_on(tmp_path: Path) -> None:
    start(tmp_path / "here", rounds(1))
    (tmp_path / "here").rename(tmp_path / "there")
    assert start(tmp_path / "there", rounds(2)) == ["r2.learn", "look"]


@pytest.mark.parametrize("victim", ["rows", "r1.learn", "r2.learn", "look"])
def test_a_conductor_killed_in_any_stage_goes_on_from_it(tmp_path: Path, victim: str) -> None:
    start(tmp_path / "whole")
    with pytest.raises(Killed):
        start(tmp_path / "broken", dies_in=victim)
    everything = ["rows", "r1.learn", "r2.learn", "look"]
    assert start(tmp_path / "broken") == everything[everything.index(victim) :]
    assert _artifacts(tmp_path / "broken") == _artifacts(tmp_path / "whole")


@pytest.mark.parametrize("moment", range(12))
def test_a_conductor_killed_at_any_moment_of_sealing_goes_on(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the disk while sealing is the last one once."""
    start(tmp_path / "whole")
    count = 0

    def counted(call: Any) -> Any:
        def dying(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment + 1:
                raise Killed
            return call(*arguments, **options)

        return dying

    with monkeypatch.context() as patch:
        for name in ("write_atomically", "sync"):
            patch.setattr(storing, name, counted(getattr(storing, name)))
        patch.setattr(storing.shutil, "rmtree", counted(shutil.rmtree))
        patch.setattr(Path, "rename", counted(Path.rename))
        with contextlib.suppress(Killed):
            start(tmp_path / "broken")
    start(tmp_path / "broken")
    assert _artifacts(tmp_path / "broken") == _artifacts(tmp_path / "whole")
    left = [path for pattern in ("**/unfinished", "**/.*partial") for path in (tmp_path / "broken").glob(pattern)]
    assert not left


def _artifacts(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file() and p.name != "seal.json"}


def test_a_sealed_stage_asked_otherwise_is_refused_with_all_that_changed_and_the_way_on(tmp_path: Path) -> None:
    start(tmp_path)
    changed = {"rows": {"word": "z"}, "rounds": {"n": 2, "stages": {"learn": {"word": "y"}}}, "look": {}}
    with pytest.raises(ResumeRefused) as refused:
        start(tmp_path, changed)
    said = str(refused.value)
    for part in ("rows.word (was 'x', is 'z')", "r1.learn.word (was 'x', is 'y')", "r2.learn.word", "--from rows"):
        assert part in said
    assert start(tmp_path, changed, wanted=Wanted(begin="rows")) == ["rows", "r1.learn", "r2.learn", "look"]


def test_an_unfinished_stage_asked_otherwise_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        start(tmp_path, dies_in="r1.learn")
    with pytest.raises(ResumeRefused, match=r"r1\.learn\.word \(was 'x', is 'y'\).*--from r1\.learn"):
        start(tmp_path, rounds(2, word="y"))


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(ResumeRefused, match=r"rows\.seed \(was 0, is 1\)"):
        start(tmp_path, seed=1)


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_a_seal_that_does_not_match_its_files_is_named(tmp_path: Path, change: str) -> None:
    start(tmp_path)
    path = tmp_path / "r1.learn" / "policy"
    path.write_text("mine") if change == "edit" else path.unlink()
    with pytest.raises(
        ResumeRefused,
        match=rf"edited by hand.*{path} \({'changed' if change == 'edit' else 'is missing'}\).*--from r1\.learn",
    ):
        start(tmp_path)
    assert start(tmp_path, wanted=Wanted(begin="r1.learn")) == ["r1.learn", "r2.learn", "look"]


def test_a_damaged_seal_is_named(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / "rows" / "seal.json").write_text('{"made": ')
    with pytest.raises(ResumeRefused, match=r"rows/seal\.json.*damaged; --from rows"):
        start(tmp_path)
    (tmp_path / "rows" / "seal.json").write_text('{"format": 99}')
    with pytest.raises(ResumeRefused, match="is of format 99, this version writes 1"):
        start(tmp_path)


def test_parts_of_a_run(tmp_path: Path) -> None:
    assert start(tmp_path, wanted=Wanted(until="r1.learn")) == ["rows", "r1.learn"]
    with pytest.raises(
        FailedPrecondition, match=r"--only look takes what r2\.learn makes, and that is not done; --until look"
    ):
        start(tmp_path, wanted=Wanted(only="look"))
    assert start(tmp_path, wanted=Wanted(only="r2.learn")) == ["r2.learn"]
    assert start(tmp_path, wanted=Wanted(only="look")) == ["look"]
    assert start(tmp_path, wanted=Wanted(begin="look")) == ["look"]
    with pytest.raises(ConfigError, match="this run has no such stage; did you mean look"):
        start(tmp_path, wanted=Wanted(until="lok"))
    with pytest.raises(FailedPrecondition, match="--from look is after --until rows"):
        start(tmp_path, wanted=Wanted(begin="look", until="rows"))


def test_what_took_other_things_before_is_made_anew(tmp_path: Path) -> None:
    start(tmp_path)
    assert start(tmp_path, {**rounds(2), "rows": {"word": "z"}}, wanted=Wanted(begin="rows", until="rows")) == ["rows"]
    assert start(tmp_path, {**rounds(2), "rows": {"word": "z"}}) == ["r1.learn", "r2.learn", "look"]
    assert "rows(z; )" in (tmp_path / "look" / "figures").read_text()


def test_a_seal_says_what_was_asked_taken_and_made(tmp_path: Path) -> None:
    start(tmp_path)
    seal = json.loads((tmp_path / "r2.learn" / "seal.json").read_text())
    assert seal["asked"]["inputs"] == {"start": ["r1.learn/policy"]}
    assert seal["took"] == {"start": [json.loads((tmp_path / "r1.learn" / "seal.json").read_text())["made"]["policy"]]}
    assert seal["seconds"] >= 0


def test_a_folder_of_before_recipes_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: old\n")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(FailedPrecondition, match=r"is a run of an older version.*finish it with that version"):
        refuse_old(tmp_path)


class Grow(Toy):
    """Counts on from what it kept."""

    takes: ClassVar[Mapping[str, Any]] = {"start": "prompts"}
    makes: ClassVar[Mapping[str, Kind]] = {"policy": "model", "figures": "figures"}
    grows: ClassVar[str] = "steps"
    keeps: ClassVar[tuple[str, ...]] = ("state",)
    steps: int = 3
    """Of them."""

    def run(self, bench: Bench) -> None:
        state, lines = bench.unfinished / "state", bench.make("figures") / "lines"
        state.mkdir(exist_ok=True)
        lines.parent.mkdir(exist_ok=True)
        done = len(list(state.iterdir()))
        with lines.open("a") as file:
            for number in range(done, self.steps):
                (state / str(number)).touch()
                file.write(f"{number} by {self.word}\n")
        bench.make("policy").write_text(lines.read_text())


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "grow", Grow)


def _grown(root: Path, steps: int, **more: Any) -> list[str]:
    return start(root, {"rows": {}, "grow": {"steps": steps}, "look": {}}, **more)


def _lines(root: Path) -> list[str]:
    return (root / "grow" / "figures" / "lines").read_text().splitlines()


@pytest.mark.usefixtures("growing")
def test_a_finished_stage_goes_on_from_what_it_kept_when_more_is_asked_of_it(tmp_path: Path) -> None:
    assert _grown(tmp_path, 3) == ["rows", "grow", "look"]
    assert sorted(path.name for path in (tmp_path / "grow").iterdir()) == ["figures", "kept", "policy", "seal.json"]
    assert _grown(tmp_path, 5) == ["grow", "look"]
    assert _lines(tmp_path) == [f"{number} by x" for number in range(5)]
    assert "4 by x" in (tmp_path / "look" / "figures").read_text()
    assert json.loads((tmp_path / "grow" / "seal.json").read_text())["asked"]["options"]["steps"] == 5
    assert _grown(tmp_path, 5) == []


@pytest.mark.usefixtures("growing")
def test_an_unfinished_stage_may_be_asked_for_more_and_none_for_less_or_other(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        _grown(tmp_path, 3, dies_in="grow")
    assert _grown(tmp_path, 4) == ["grow", "look"]
    assert len(_lines(tmp_path)) == 4
    with pytest.raises(ResumeRefused, match=r"grow\.steps \(was 4, is 2\)"):
        _grown(tmp_path, 2)
    with pytest.raises(ResumeRefused, match=r"grow\.word"):
        start(tmp_path, {"rows": {}, "grow": {"steps": 6, "word": "y"}, "look": {}})


@pytest.mark.usefixtures("growing")
def test_what_kept_nothing_cannot_grow_and_other_inputs_begin_anew(tmp_path: Path) -> None:
    _grown(tmp_path, 3)
    assert start(tmp_path, {"rows": {"word": "z"}, "grow": {"steps": 5}, "look": {}}, wanted=Wanted(begin="rows")) == [
        "rows",
        "grow",
        "look",
    ]
    assert len(_lines(tmp_path)) == 5
    shutil.rmtree(tmp_path / "grow" / "kept")
    with pytest.raises(ResumeRefused, match=r"grow\.steps \(was 5, is 6\)"):
        start(tmp_path, {"rows": {"word": "z"}, "grow": {"steps": 6}, "look": {}})


@pytest.mark.usefixtures("growing")
def test_a_kill_while_a_stage_is_opened_again_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _grown(tmp_path, 3)

    def killed(_path: Path) -> None:
        raise Killed

    for where in ("sync", "remove"):  # once it is opened, and while it is sealed again
        with monkeypatch.context() as patch:
            patch.setattr(storing, where, killed)
            with pytest.raises(Killed):
                _grown(tmp_path, 5)
    assert _grown(tmp_path, 5) == ["look"]
    assert _lines(tmp_path) == [f"{number} by x" for number in range(5)]
