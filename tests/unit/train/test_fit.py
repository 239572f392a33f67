"""The supervised loop: batches, the held-out minimum, the clock, and going on after a kill."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lodestar.config import TrainingConfig
from lodestar.errors import NonFinite, ResumeRefused
from lodestar.packing import batches_of
from lodestar.train.batches import plan
from lodestar.train.fit import Fit, fit
from lodestar.train.progress import Silent
from lodestar.train.schedule import adamw, warmup_cosine

CONFIG = TrainingConfig(
    epochs=4, batch_tokens=20, learning_rate=0.3, evaluations_per_epoch=2, warmup_fraction=0.1, patience=100
)


class Line:
    """Fit y = 2x with one weight; ``held_out`` overrides what the evaluations say, ``dies`` kills the process."""

    def __init__(self, *, held_out: Sequence[float] = (), dies_at: int = -1, nan_at: int = -1) -> None:
        self.lengths = [1] * 100
        self._held_out = list(held_out)
        self._left, self._nan = dies_at, nan_at
        self.steps = 0

    def loss(self, model: nn.Module, rows: Sequence[int]) -> Tensor:
        if self.steps == self._left:
            raise KeyboardInterrupt
        self.steps += 1
        x = torch.tensor([[row / 100] for row in rows])
        loss: Tensor = (model(x) - 2 * x).square().mean()
        return loss * math.nan if self.steps == self._nan else loss

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if self._held_out:
            return {"held_out_loss": self._held_out.pop(0)}
        return {"held_out_loss": float((model.weight - 2).square())}  # type: ignore[operator]


def _model() -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    return model


def _fit(model: nn.Module, line: Line, path: Path, config: TrainingConfig = CONFIG, data: str = "d") -> Fit:
    identity = {"configuration": "c", "data": data}
    return fit("line", model, line, config, seed=0, state_file=path, identity=identity, progress=Silent())


def test_batches_hold_every_row_once_and_keep_the_budget() -> None:
    lengths = [3, 9, 4, 4, 12, 1]
    assert [*batches_of(range(6), 10, lengths.__getitem__)] == [[0], [1], [2, 3], [4], [5]]
    assert [*batches_of([1, 2, 3, 5, 12], 10, int, padded=True)] == [[1, 2, 3], [5], [12]]
    assert [*batches_of([], 10, int)] == []


def test_a_plan_covers_each_epoch_in_an_order_of_its_own() -> None:
    batches = plan([1] * 50, 10, 2.5, seed="s")
    assert [sorted(row for batch in batches[i : i + 5] for row in batch) for i in (0, 5)] == [list(range(50))] * 2
    assert batches[:5] != batches[5:10]
    assert len(batches) == 12
    assert batches == plan([1] * 50, 10, 2.5, seed="s") != plan([1] * 50, 10, 2.5, seed="t")


def test_the_rate_warms_up_and_falls_to_a_tenth() -> None:
    assert [warmup_cosine(p, 0.1) for p in (0.0, 0.05, 0.1, 1.0, 2.0)] == pytest.approx([0, 0.5, 1, 0.1, 0.1])


def test_only_matrices_decay() -> None:
    groups = adamw(nn.Linear(3, 3).parameters(), CONFIG).param_groups
    assert [(group["weight_decay"], group["params"][0].ndim) for group in groups] == [(0.01, 2), (0.0, 1)]


def test_it_learns_and_says_how_it_went(tmp_path: Path) -> None:
    model = _model()
    result = _fit(model, Line(), tmp_path / "s.pt")
    assert model.weight.item() == pytest.approx(2, abs=0.5)
    assert (result.steps, result.stopped) == (20, "epochs")
    assert [row["step"] for row in result.history][:3] == [0, 2, 4]
    assert result.best["held_out_loss"] == min(row["held_out_loss"] for row in result.history)


def test_the_weights_of_the_held_out_minimum_are_kept(tmp_path: Path) -> None:
    seen: list[float] = []
    model = _model()

    class Watched(Line):
        def evaluate(self, model: nn.Module) -> dict[str, float]:
            seen.append(model.weight.item())  # type: ignore[operator]
            return super().evaluate(model)

    patient = CONFIG.model_copy(update={"patience": 3})
    result = _fit(model, Watched(held_out=[5, 4, 1, 2, 3, 4, 5, 6]), tmp_path / "s.pt", patient)
    assert (result.stopped, result.best_step, result.steps) == ("patience", 4, 10)
    assert model.weight.item() == seen[2]


def test_a_model_that_only_gets_worse_is_left_as_it_was(tmp_path: Path) -> None:
    model = _model()
    assert _fit(model, Line(held_out=[1, *range(2, 12)]), tmp_path / "s.pt").best_step == 0
    assert model.weight.item() == 0


def test_the_clock_stops_it_at_an_evaluation(tmp_path: Path) -> None:
    result = _fit(_model(), Line(), tmp_path / "s.pt", CONFIG.model_copy(update={"max_seconds": 1e-6}))
    assert (result.steps, result.stopped) == (1, "max_seconds")
    assert result.history[-1]["step"] == 1


class Heard(Silent):
    """What a stage told."""

    def __init__(self) -> None:
        self.figures: list[Mapping[str, float]] = []

    def metrics(self, values: Mapping[str, float]) -> None:
        self.figures.append(values)


def test_a_stage_that_the_clock_cut_short_says_so_and_no_other_does(tmp_path: Path) -> None:
    limits = {"max_seconds": 1e-6}, {"max_seconds": None}, {"max_seconds": None, "patience": 1}
    found = []
    for i, limit in enumerate(limits):
        heard, identity = Heard(), {"configuration": "c"}
        line = Line(held_out=[1, 2, 3] if "patience" in limit else ())
        config = CONFIG.model_copy(update=limit)
        path = tmp_path / f"{i}.pt"
        result = fit("line", _model(), line, config, seed=0, state_file=path, identity=identity, progress=heard)
        found.append((result.cut_short, result.figures()["cut_short"], heard.figures[-1].get("cut_short")))
    assert found == [({"done": 1, "total": 20}, {"done": 1, "total": 20}, 1 / 20), (None,) * 3, (None,) * 3]


def test_a_held_out_loss_that_is_not_a_number_is_an_error_and_no_figure(tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match="the held-out loss is nan after step 2; lower learning_rate"):
        _fit(_model(), Line(held_out=[1.0, math.nan]), tmp_path / "s.pt")


class Timed(Line):
    """A line on a clock of its own: what steps take, and what each evaluation takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, step: float, evaluations: Sequence[float]) -> None:
        super().__init__()
        self.now, self._step, self._evaluations = 0.0, step, list(evaluations)
        monkeypatch.setattr("lodestar.train.clock.time", SimpleNamespace(monotonic=lambda: self.now))

    def loss(self, model: nn.Module, rows: Sequence[int]) -> Tensor:
        self.now += self._step
        return super().loss(model, rows)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        self.now += self._evaluations.pop(0) if len(self._evaluations) > 1 else self._evaluations[0]
        return super().evaluate(model)


@pytest.mark.parametrize("limit", [9.0, 15.0, 16.0, 25.0, 31.0])
def test_a_stage_ends_within_its_time_with_its_last_evaluation_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    line = Timed(monkeypatch, step=1.0, evaluations=[4.0])
    result = _fit(_model(), line, tmp_path / "s.pt", CONFIG.model_copy(update={"max_seconds": limit}))
    assert result.stopped == "max_seconds"
    assert limit - 1.0 < line.now <= limit
    assert result.seconds == line.now
    assert result.history[-1]["step"] == result.steps


def test_time_is_kept_for_an_evaluation_as_long_as_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Timed(monkeypatch, step=1.0, evaluations=[1.0, 5.0])
    result = _fit(_model(), line, tmp_path / "s.pt", CONFIG.model_copy(update={"max_seconds": 20.0}))
    assert [row["step"] for row in result.history] == [0, 2, 9]
    assert line.now == 20.0


def test_a_resumed_stage_has_what_is_left_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.model_copy(update={"max_seconds": 20.0})
    first = Timed(monkeypatch, step=1.0, evaluations=[2.0])
    first._left = 3
    with pytest.raises(KeyboardInterrupt):
        _fit(_model(), first, tmp_path / "s.pt", config)
    second = Timed(monkeypatch, step=1.0, evaluations=[2.0])
    result = _fit(_model(), second, tmp_path / "s.pt", config)
    assert (result.stopped, result.seconds) == ("max_seconds", 20.0)
    assert second.now == 20.0 - 6.0  # the first start's two steps and two evaluations


def test_the_rate_has_fallen_when_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def noted(progress: float, warmup: float) -> float:
        rates.append(warmup_cosine(progress, warmup))
        return rates[-1]

    monkeypatch.setattr("lodestar.train.fit.warmup_cosine", noted)
    line = Timed(monkeypatch, step=1.0, evaluations=[2.0])
    _fit(_model(), line, tmp_path / "s.pt", CONFIG.model_copy(update={"max_seconds": 16.0}))
    assert rates[-1] < 0.15


def test_a_killed_stage_goes_on_where_it_was_and_ends_alike(tmp_path: Path) -> None:
    undisturbed, resumed = _model(), _model()
    _fit(undisturbed, Line(), tmp_path / "a.pt")
    with pytest.raises(KeyboardInterrupt):
        _fit(resumed, Line(dies_at=13), tmp_path / "b.pt")
    again = Line()
    result = _fit(resumed, again, tmp_path / "b.pt")
    assert again.steps == 8
    assert [row["step"] for row in result.history] == list(range(0, 21, 2))
    assert resumed.weight.item() == undisturbed.weight.item()


def test_a_stage_with_other_data_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _fit(_model(), Line(dies_at=5), tmp_path / "s.pt")
    with pytest.raises(ResumeRefused, match=r"s\.pt is an interrupted stage with another data; restore what it was"):
        _fit(_model(), Line(), tmp_path / "s.pt", data="other")


def test_a_loss_that_is_not_a_number_stops_with_the_state_kept(tmp_path: Path) -> None:
    model = _model()
    with pytest.raises(NonFinite, match="the loss is nan"):
        _fit(model, Line(nan_at=5), tmp_path / "s.pt")
    assert math.isfinite(model.weight.item())
    assert (tmp_path / "s.pt").exists()
