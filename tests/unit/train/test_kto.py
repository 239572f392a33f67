"""KTO: who is liked, the reference point from other prompts' completions, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lodestar.config import ModelConfig
from lodestar.config.dpo import DpoConfig
from lodestar.data.files import write_feedback
from lodestar.errors import DataError
from lodestar.local.tiny import llama, tokenizer
from lodestar.model.fused import fuse
from lodestar.model.loading import load_causal_lm, save_model
from lodestar.records import Choice, Feedback, Ranking, Ratings
from lodestar.train import train_dpo
from lodestar.train.implied import Trainee
from lodestar.train.kto import KtoObjective, Liked, likes
from lodestar.train.progress import Silent
from tests.unit.train.test_dpo import Likely, _logprob, _moved, plain

SCALE = {"approval": (0.0, 1.0)}
CONFIG = DpoConfig.model_validate(
    {"loss": "kto", "beta": 0.5, "desirable": 1.3, "batch_tokens": 256, "learning_rate": 3e-3, "epochs": 4}
)


def rated(prompt: str, reply: str, value: float) -> Feedback:
    return Feedback(prompt, (reply,), Ratings({"approval": (value,)}, SCALE), id=f"{prompt}/{reply}")


ROWS = [
    rated("t9 t4", "t5 t6", 1.0),
    rated("t9 t4", "t8", 0.0),
    rated("t3", "t31 t32", 0.5),
    Feedback("t40", ("t5", "t6 t7", "t8", "t31"), Ranking(((2,), (0, 3), (1,)))),
    Feedback("t30", ("t4 t4", "t5"), (Choice(0, 1, 0.5),)),
]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "start"
    save_model(llama(hidden=32, layers=2, vocab=64, eos_bias=1.0), tokenizer(64), folder)
    return folder


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_who_wins_more_than_it_loses_is_liked_and_what_nobody_judged_is_counted_aloud() -> None:
    heard = Heard()
    found = likes(tokenizer(64), ROWS, "rows.jsonl", 0, heard)
    assert [group.liked for group in found] == [True, False, False, True]
    assert [group.rows[0].token_ids[-2] for group in found] == [6, 8, 7, 8]
    assert heard.said == ["rows.jsonl: 5 of 9 completions were neither liked nor disliked and teach nothing"]
    for group in found:
        own, other = group.rows
        head = own.token_ids[: own.prompt_tokens]
        assert other.token_ids[: other.prompt_tokens] == head
        assert any(
            other.token_ids[len(head) :] == row.rows[0].token_ids[row.rows[0].prompt_tokens :]
            for row in found
            if row.rows[0].token_ids[: row.rows[0].prompt_tokens] != head
        )
    assert found == likes(tokenizer(64), ROWS, "rows.jsonl", 0, Silent())


def test_loss_and_gradients_are_those_of_a_slow_float64_version(start: Path) -> None:
    reference = Likely(start)
    groups = [
        Liked(g.rows, g.liked, tuple(reference.of(g.rows, "", None)))
        for g in likes(tokenizer(64), ROWS, "rows.jsonl", 0, Silent())
    ]
    policy, slow = _moved(start), plain(start).double()
    slow.load_state_dict(policy.state_dict())
    fuse(policy)
    objective = KtoObjective(groups, groups, CONFIG, ModelConfig())
    loss = objective.loss(Trainee(policy, CONFIG), range(len(groups)))
    ratios = [[_logprob(slow, row) - ref for row, ref in zip(g.rows, g.reference, strict=True)] for g in groups]
    point = max(0.0, sum(float(other.detach()) for _, other in ratios) / len(groups))
    parts = [
        1.3 * (1 - torch.sigmoid(0.5 * (own - point))) if group.liked else 1 - torch.sigmoid(0.5 * (point - own))
        for group, (own, _) in zip(groups, ratios, strict=True)
    ]
    expected = sum(parts) / len(parts)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in policy.named_parameters()}
    for name, parameter in slow.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(gradients[name].double(), parameter.grad, rtol=1e-4, atol=2e-5 * scale, msg=name)


def test_it_learns_from_likes_alone(start: Path, tmp_path: Path) -> None:
    sides = (("t7", 1.0), ("t8", 0.0))
    rows = [rated(f"t{3 + i % 5} t{30 + i % 8}", f"{word} t{40 + i % 20}", v) for i in range(40) for word, v in sides]
    write_feedback(tmp_path / "feedback" / "train.jsonl", rows[:64])
    write_feedback(tmp_path / "feedback" / "held_out.jsonl", rows[64:])
    result = train_dpo(
        CONFIG,
        ModelConfig(),
        feedback=[tmp_path / "feedback"],
        start=start,
        tokenizer=start,
        reference=Likely(start),
        output=tmp_path / "policy",
        state=tmp_path / "state.pt",
        seed=0,
    )
    assert result.history[0]["held_out_loss"] == pytest.approx((1.3 + 1) / 4, abs=1e-5)
    assert result.best["held_out_accuracy"] > 0.9
    assert result.best["held_out_chosen_reward"] > 0 > result.best["held_out_rejected_reward"]
    assert math.isfinite(result.best["held_out_margin"])
    load_causal_lm(tmp_path / "policy")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS[:1], "rows.jsonl: none of 1 completions was disliked: kto needs both kinds"),
        (ROWS[1:3], "rows.jsonl: none of 2 completions was liked: kto needs both kinds"),
        (ROWS[:2], "rows.jsonl: has one prompt alone: kto takes its reference point from completions of others"),
    ],
)
def test_feedback_without_both_kinds_or_other_prompts_is_refused(rows: list[Feedback], said: str) -> None:
    with pytest.raises(DataError, match=said):
        likes(tokenizer(64), rows, "rows.jsonl", 0, Silent())
