"""Training under control tokens reaches what its equation says: Bayes' rule, and Quark's mixture with the reference."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lodestar.config import ModelConfig, TrainingConfig
from lodestar.data.control import Control
from lodestar.data.rows import encode_prompts
from lodestar.errors import ConfigError, ResumeRefused
from lodestar.local.tiny import llama, tokenizer
from lodestar.model.loading import load_causal_lm, load_tokenizer, save_model
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.train.conditioned import Labelled, encode_labelled, train_conditioned
from lodestar.train.fit import Fit
from lodestar.train.progress import Silent

PROMPT = "t3 t4"
GOOD = {"t5": 6, "t6": 3, "t7": 1}
BAD = {"t5": 1, "t6": 2, "t7": 5, "t8": 2}
COPIES = 40
TRAINING = TrainingConfig(
    epochs=12, batch_tokens=640, learning_rate=2e-2, evaluations_per_epoch=1, patience=100, weight_decay=0.0
)


def rows() -> list[Labelled]:
    return [
        Labelled(PROMPT, word, token)
        for token, counts in enumerate((GOOD, BAD))
        for word, count in counts.items()
        for _ in range(count * COPIES)
    ]


@pytest.fixture
def start(tmp_path: Path) -> Path:
    save_model(llama(hidden=32, layers=1, vocab=12, eos_bias=0.0, seed=4), tokenizer(12), tmp_path / "start")
    return tmp_path / "start"


def trained(start: Path, **options: Any) -> Fit:
    told: dict[str, Any] = {
        "tokens": ("<|good|>", "<|bad|>"),
        "key": "stages.conditioning.good",
        "train": rows(),
        "held_out": rows(),
        "start": start,
        "tokenizer": start,
        "output": start.parent / "made",
        "state": start.parent / "state.pt",
        "seed": 1,
    }
    training, model = options.pop("training", TRAINING), options.pop("model", ModelConfig())
    return train_conditioned("conditioning", training, model, **told | options)


def first_token(folder: Path, index: int | None) -> dict[str, float]:
    """π(word | control token, prompt) of a model's first reply token."""
    words, model = load_tokenizer(folder), load_causal_lm(folder)
    prompt = encode_prompts(words, [PROMPT])[0]
    if index is not None:
        prompt = Control.of(words).before(prompt, index)
    batch = PackedBatch.pack([(*prompt, token) for token in range(12)], [len(prompt)] * 12, device="cpu")
    with torch.no_grad():
        logprobs_R, _ = response_logprobs(model, batch, temperature=1.0)
    return {f"t{i}": float(logprob.exp()) for i, logprob in enumerate(logprobs_R)}


def shares(counts: dict[str, int]) -> dict[str, float]:
    return {f"t{i}": counts.get(f"t{i}", 0) / sum(counts.values()) for i in range(12)}


def test_conditioning_learns_the_replies_of_each_verdict_exactly(start: Path) -> None:
    """π(y | good, x) = P(y | x, good) and likewise for bad: Bayes' rule on the table of counts."""
    fitted = trained(start)
    assert fitted.steps > 0
    for index, counts in enumerate((GOOD, BAD)):
        found, wanted = first_token(start.parent / "made", index), shares(counts)
        assert found == pytest.approx(wanted, abs=0.04)
    served = first_token(start.parent / "made", None)
    assert served == pytest.approx(shares(GOOD), abs=0.04), "asked without a token, it answers under the best"


def test_quarks_fixed_point_is_the_mixture_with_the_reference(start: Path) -> None:
    """argmin_p E_q[−log p] + β KL(π_0 ‖ p) = (q + β π_0) / (1 + β), at the reply's first token."""
    beta = 0.5
    fitted = trained(start, reference=start, beta=beta)
    assert set(fitted.best) >= {"held_out_loss", "held_out_nll", "held_out_kl"}
    assert fitted.best["held_out_loss"] == pytest.approx(
        fitted.best["held_out_nll"] + beta * fitted.best["held_out_kl"], abs=1e-5
    )
    before = first_token(start, None)
    for index, counts in enumerate((GOOD, BAD)):
        data = shares(counts)
        wanted = {word: (data[word] + beta * before[word]) / (1 + beta) for word in data}
        assert first_token(start.parent / "made", index) == pytest.approx(wanted, abs=0.04)


def test_a_reply_that_was_cut_off_is_taught_without_an_end(start: Path) -> None:
    words = load_tokenizer(start)
    words.add_tokens(["<|good|>", "<|bad|>"], special_tokens=True)
    words.init_kwargs["control_tokens"] = ["<|good|>", "<|bad|>"]
    labelled = [Labelled(PROMPT, "t5 t6", 1, ended=False), Labelled(PROMPT, "t5", 0)]
    assert [row.token_ids for row in encode_labelled(words, labelled)] == [(13, 3, 4, 5, 6), (12, 3, 4, 5, 1)]
    assert Counter(row.prompt_tokens for row in encode_labelled(words, labelled)) == {3: 2}


def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(start: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Deadly(Silent):
        def metrics(self, values: Any) -> None:
            self.seen = getattr(self, "seen", 0) + 1
            if self.seen == 3:
                raise Killed

    brief = TRAINING.model_copy(update={"epochs": 3.0})
    more = {"training": brief, "reference": start, "beta": 0.1}
    trained(start, output=tmp_path / "whole", state=tmp_path / "a.pt", **more)
    with pytest.raises(Killed):
        trained(start, output=tmp_path / "broken", state=tmp_path / "b.pt", progress=Deadly(), **more)
    assert (tmp_path / "b.pt").exists()
    with pytest.raises(ResumeRefused, match="another data"):
        trained(start, output=tmp_path / "broken", state=tmp_path / "b.pt", train=rows()[1:], **more)
    trained(start, output=tmp_path / "broken", state=tmp_path / "b.pt", **more)
    whole, broken = (load_causal_lm(tmp_path / name).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_control_token_that_the_model_reads_already_is_refused_by_its_option(start: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\.conditioning\.good: 't5' is a token of this model already"):
        trained(start, tokens=("t5", "<|bad|>"))


def test_adapters_alone_tell_the_tokens_apart(start: Path) -> None:
    """LoRA leaves embeddings as they are: the tokens' rows must differ from the start, or nothing could be learned."""
    model = ModelConfig.model_validate({"path": str(start), "lora": {"rank": 8, "alpha": 16}})
    trained(start, model=model)
    good, bad = (first_token(start.parent / "made", index) for index in (0, 1))
    assert good["t5"] - bad["t5"] > 0.3
    assert bad["t7"] - good["t7"] > 0.2
