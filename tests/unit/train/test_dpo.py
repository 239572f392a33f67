"""DPO on feedback of every kind: losses and gradients against a slow float64 version, resuming, adapters, refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM

from lodestar.config import LoraConfig, ModelConfig
from lodestar.config.dpo import DpoConfig
from lodestar.data.files import write_feedback
from lodestar.errors import DataError, InvalidArgument
from lodestar.local.tiny import llama, tokenizer
from lodestar.model.fused import fuse
from lodestar.model.loading import load_causal_lm, load_tokenizer, save_model
from lodestar.records import Choice, Feedback, Ranking, Ratings, Scored
from lodestar.train import train_dpo
from lodestar.train.dpo import Compared, DpoObjective
from lodestar.train.implied import Trainee
from lodestar.train.likelihood import log_likelihoods
from lodestar.train.preference import encode_groups
from lodestar.train.progress import Silent

BRIEF = {"epochs": 2, "batch_tokens": 64, "evaluations_per_epoch": 2, "learning_rate": 3e-3}
PAIR = Feedback("t9 t4", ("t5 t6 t7", "t8"), (Choice(0, 1, 1.0, 2.0),), id="pair")
SOFT = Feedback("t3", ("t5 t9", "t31 t32 t33"), (Choice(1, 0, 0.7),), id="soft")
TIE = Feedback("t3 t3 t50", ("t5 t9", "t31 t32"), (Choice(0, 1, 0.5),), id="tie")
FOUR = Feedback("t40 t41", ("t5", "t6 t7", "t8 t9 t50", "t31"), Ranking(((2,), (0, 3), (1,))), id="four")
LIKERT = Feedback("t30", ("t4 t4", "t5"), Ratings({"helpful": (2.0, 5.0)}, {"helpful": (1, 5)}), id="likert")
NOTHING = Feedback(
    "t30", ("t4", "t5"), Ratings({"a": (2.0, None), "b": (None, 1.0)}, {"a": (1, 5), "b": (1, 5)}), id="nothing"
)
LIKED = Feedback("t30", ("t4 t4",), Ratings({"approval": (1.0,)}, {"approval": (0, 1)}), id="liked")
EVERY = [PAIR, SOFT, TIE, FOUR, LIKERT]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that knows nothing."""
    folder = tmp_path_factory.mktemp("models") / "start"
    save_model(llama(hidden=32, layers=2, vocab=64, eos_bias=1.0), tokenizer(64), folder)
    return folder


def plain(folder: Path) -> Any:
    """By transformers alone."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


class Likely:
    """The reference in this process."""

    def __init__(self, folder: Path) -> None:
        self._model = plain(folder)
        self.asked = 0

    def of(self, rows: Sequence[Scored], tokenizer_hash: str, progress: Any) -> list[float]:
        self.asked += len(rows)
        return [float(_logprob(self._model, row).detach()) for row in rows]


def _logprob(model: Any, row: Scored) -> Tensor:
    """By plain Hugging Face, a sequence at a time."""
    ids = torch.tensor([row.token_ids])
    logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    total: Tensor = logprobs[row.prompt_tokens - 1 :].sum()
    return total


def _compared(folder: Path, rows: Sequence[Feedback], config: DpoConfig) -> list[Compared]:
    from lodestar.preference.pairs import choices

    groups, reference = encode_groups(load_tokenizer(folder), rows), Likely(folder)
    return [
        Compared(group, choices(row), tuple(reference.of(group, "", None)))
        for row, group in zip(rows, groups, strict=True)
    ]


def _moved(folder: Path) -> Any:
    """The start model, some way from where it was."""
    model = load_causal_lm(folder)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=noise)
    return model


def _slow_loss(policy: Any, groups: Sequence[Compared], config: DpoConfig, log_ties: float) -> Tensor:
    """The loss as it is written in the papers, float64, pair by pair."""
    prompts = []
    for group in groups:
        ratio = [_logprob(policy, row) - ref for row, ref in zip(group.rows, group.reference, strict=True)]
        losses = []
        for choice in group.choices:
            h, y = ratio[choice.first] - ratio[choice.second], choice.label
            y = (1 - config.label_smoothing) * y + config.label_smoothing * (1 - y)
            d, m = config.beta * h, config.margin * choice.strength
            if config.loss == "ipo":
                losses.append(y * (h - 1 / (2 * config.beta)) ** 2 + (1 - y) * (h + 1 / (2 * config.beta)) ** 2)
            elif config.ties == "davidson":
                whole = (d / 2).exp() + math.exp(log_ties) + (-d / 2).exp()
                win, lose, tie = (d / 2).exp() / whole, (-d / 2).exp() / whole, math.exp(log_ties) / whole
                shares = max(2 * y - 1, 0), max(1 - 2 * y, 0)
                parts = (shares[0] * win.log(), shares[1] * lose.log(), (1 - sum(shares)) * tie.log())
                losses.append(-sum(parts))  # type: ignore[arg-type]
            else:
                losses.append(-(y * (d - m).sigmoid().log() + (1 - y) * (-d - m).sigmoid().log()))
        prompts.append(sum(losses) / len(losses))
    return sum(prompts) / len(prompts)  # type: ignore[return-value]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.2, "beta": 0.7},
        {"margin": 0.5},
        {"ties": "davidson"},
        {"loss": "ipo", "label_smoothing": 0.1},
        {"share_prefix": False},
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_a_slow_float64_version(
    start: Path, options: dict[str, Any], fused: bool
) -> None:
    config = DpoConfig.model_validate(BRIEF | options)
    groups = _compared(start, EVERY, config)
    policy = _moved(start)
    slow = plain(start).double()
    slow.load_state_dict(policy.state_dict())
    if fused:
        assert fuse(policy)
    trainee = Trainee(policy, config)
    loss = DpoObjective(groups, groups, config, ModelConfig()).loss(trainee, range(len(groups)))
    expected = _slow_loss(slow, groups, config, 0.0)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in policy.named_parameters()}
    for name, parameter in slow.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(gradients[name].double(), parameter.grad, rtol=1e-4, atol=2e-5 * scale, msg=name)


def test_a_loss_does_not_depend_on_how_its_rows_are_batched(start: Path) -> None:
    config = DpoConfig.model_validate(BRIEF)
    groups, model = _compared(start, EVERY, config), Trainee(_moved(start), config)
    objective = DpoObjective(groups, groups, config, ModelConfig())
    alone = [float(objective.loss(model, [row]).detach()) for row in range(len(groups))]
    assert float(objective.loss(model, range(len(groups))).detach()) == pytest.approx(sum(alone) / 5, rel=1e-5)
    with torch.no_grad():
        assert objective.evaluate(model)["held_out_loss"] == pytest.approx(sum(alone) / 5, rel=1e-5)


def test_implied_rewards_are_told_of_held_out_and_of_training_rows(start: Path) -> None:
    config = DpoConfig.model_validate(BRIEF | {"beta": 0.5})
    groups, model, slow = _compared(start, EVERY, config), _moved(start), plain(start)
    slow.load_state_dict(model.state_dict())
    trainee, objective = Trainee(model, config), DpoObjective(groups, groups, config, ModelConfig())
    with torch.no_grad():
        before = objective.evaluate(trainee)
        objective.loss(trainee, [0, 3])
        after = objective.evaluate(trainee)
    rewards = [
        [0.5 * (float(_logprob(slow, row).detach()) - ref) for row, ref in zip(g.rows, g.reference, strict=True)]
        for g in groups
    ]
    better = [(0, 0, 1), (1, 1, 0), (3, 2, 0), (3, 2, 3), (3, 2, 1), (3, 0, 1), (3, 3, 1), (4, 1, 0)]
    margins = [rewards[g][i] - rewards[g][j] for g, i, j in better]
    assert before["held_out_margin"] == pytest.approx(sum(margins) / 8, abs=1e-5)
    assert before["held_out_accuracy"] == sum(margin > 0 for margin in margins) / 8
    assert before["held_out_chosen_reward"] == pytest.approx(sum(rewards[g][i] for g, i, _ in better) / 8, abs=1e-5)
    assert "accuracy" not in before, "nothing was trained on yet"
    own = [rewards[g][i] - rewards[g][j] for g, i, j in better if g in (0, 3)]
    assert after["margin"] == pytest.approx(sum(own) / 6, abs=1e-5)


def _feedback(folder: Path, count: int = 40) -> Path:
    """Replies with t7 are better, each beside one of as many words."""
    words = [f"t{i}" for i in range(30, 60)]
    rows = [
        Feedback(f"{a} {b}", (f"t7 {b}", f"t8 {a}"), (Choice(0, 1, 1.0),), id=f"{a}{b}")
        for a, b in list(combinations(words, 2))[:count]
    ]
    write_feedback(folder / "train.jsonl", rows[: count * 3 // 4])
    write_feedback(folder / "held_out.jsonl", rows[count * 3 // 4 :])
    return folder


def _train(folder: Path, start: Path, feedback: Path, **told: Any) -> Any:
    options = {"progress": None, "training": DpoConfig.model_validate(BRIEF), "model": ModelConfig(), **told}
    return train_dpo(
        options["training"],
        options["model"],
        feedback=[feedback],
        start=start,
        tokenizer=start,
        reference=told.get("reference") or Likely(start),
        output=folder / "policy",
        state=folder / "state.pt",
        seed=0,
        progress=options["progress"],
    )


def test_it_learns_what_people_prefer_and_saves_a_plain_model(start: Path, tmp_path: Path) -> None:
    result = _train(tmp_path, start, _feedback(tmp_path / "feedback", 80))
    assert result.history[0]["held_out_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert result.best["held_out_accuracy"] == 1.0
    assert result.best["held_out_margin"] > 0.2
    AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    rows = [Feedback("t50 t51", ("t7 t51", "t8 t50"), ())]
    before, after = (log_likelihoods(load_causal_lm(p), tokenizer(64), rows)[0] for p in (start, tmp_path / "policy"))
    assert (after[0] - after[1]) - (before[0] - before[1]) > 1.0
    assert not (tmp_path / "state.pt").exists()


class Killed(Exception):
    """What SIGKILL would be."""


class Mortal(Silent):
    """Dies at an advance of the training, if not earlier."""

    def __init__(self, lives: int) -> None:
        self._left, self._stage = lives, ""

    def start(self, stage: str, total: int) -> None:
        self._stage = stage

    def advance(self, amount: int = 1) -> None:
        self._left -= self._stage == "dpo"
        if self._left == 0:
            raise Killed


@pytest.mark.parametrize("options", [{}, {"ties": "davidson"}])
def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    start: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    feedback, config = _feedback(tmp_path / "feedback"), DpoConfig.model_validate(BRIEF | options)
    whole = _train(tmp_path / "whole", start, feedback, training=config)
    with pytest.raises(Killed):
        _train(tmp_path / "broken", start, feedback, training=config, progress=Mortal(5))
    assert (tmp_path / "broken" / "state.pt").exists()
    broken = _train(tmp_path / "broken", start, feedback, training=config)
    models = [load_causal_lm(tmp_path / name / "policy").state_dict() for name in ("whole", "broken")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert [{**row, "seconds": 0} for row in broken.history] == [{**row, "seconds": 0} for row in whole.history]


def test_adapters_train_and_a_plain_model_is_saved(start: Path, tmp_path: Path) -> None:
    model = ModelConfig(path=str(start), lora=LoraConfig(rank=4, alpha=8, targets=("q_proj", "v_proj")))
    config = DpoConfig.model_validate(BRIEF | {"learning_rate": 2e-2, "epochs": 4})
    result = _train(tmp_path, start, _feedback(tmp_path / "feedback", 80), model=model, training=config)
    assert result.best["held_out_loss"] < result.history[0]["held_out_loss"] - 0.03
    before, after = (load_causal_lm(path).state_dict() for path in (start, tmp_path / "policy"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "q_proj" in name or "v_proj" in name}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([PAIR, LIKED], r"train\.jsonl: 1 of 2 rows have one completion and no rival \(the first is 'liked'\).*kto"),
        ([TIE, TIE], r"train\.jsonl: none of 2 rows has a loser"),
        ([NOTHING], r"train\.jsonl: none of 1 rows has a loser"),
    ],
    ids=["unpaired", "ties", "nothing in common"],
)  # fmt: skip
def test_feedback_that_says_of_no_two_which_is_better_is_refused_before_anything_is_asked(
    start: Path, tmp_path: Path, rows: list[Feedback], said: str
) -> None:
    write_feedback(tmp_path / "feedback" / "train.jsonl", rows)
    write_feedback(tmp_path / "feedback" / "held_out.jsonl", [PAIR])
    reference = Likely(start)
    with pytest.raises(DataError, match=said):
        _train(tmp_path, start, tmp_path / "feedback", reference=reference)
    assert reference.asked == 0


def test_rows_that_compare_nothing_are_counted_aloud(start: Path, tmp_path: Path) -> None:
    heard: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            heard.append(text)

    feedback = _feedback(tmp_path / "feedback")
    write_feedback(feedback / "held_out.jsonl", [PAIR, NOTHING])
    _train(tmp_path, start, feedback, progress=Heard())
    assert heard == [f"{feedback}/held_out.jsonl: 1 of 2 rows compare nothing (equal texts, no common rating)"]


def test_rows_beyond_the_context_are_refused_before_anything_is_asked(start: Path, tmp_path: Path) -> None:
    from tests.unit.model import zoo

    words = tokenizer(64)
    config = zoo.tiny_config("gpt2", vocab_size=64, bos_token_id=None, eos_token_id=words.eos_token_id)
    save_model(zoo.tiny_model(config), words, tmp_path / "start")  # positions are learned: they end at 64
    feedback, reference = _feedback(tmp_path / "feedback"), Likely(start)
    write_feedback(feedback / "held_out.jsonl", [Feedback("t3", ("t5 " * 80, "t6"), (Choice(0, 1, 1.0),))])
    with pytest.raises(InvalidArgument, match=r"dpo's rows: 1 rows have more tokens, up to 82, than .* of 64"):
        _train(tmp_path, tmp_path / "start", feedback, reference=reference)
    assert reference.asked == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "ipo", "margin": 1.0}, "margin has no meaning for loss ipo"),
        ({"loss": "ipo", "ties": "davidson"}, "ties has no meaning for loss ipo"),
        ({"loss": "kto", "label_smoothing": 0.1}, "label_smoothing has no meaning for loss kto"),
        ({"ties": "davidson", "label_smoothing": 0.1}, "davidson has its own likelihood"),
        ({"desirable": 2.0}, "desirable has no meaning for loss dpo"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"beta": 0.0}, "greater than 0"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DpoConfig.model_validate(options)
