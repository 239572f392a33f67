"""SFT under control tokens: binary reward conditioning, and Quark's learning step with a KL to a reference.

    L(θ) = Σ_t [ −log π_θ(y_t | c, x, y_<t) + β · KL(π_0(·|x, y_<t) ‖ π_θ(·|c, x, y_<t)) ] / tokens

with c the control token of the reply's verdict or reward quantile (Lu et al. 2022, equation 2, whose expectation over
quantiles is the mean over rows: quantiles are equally large). Without KL its minimum is π(y|c, x) = P(y | x, c), the
distribution of replies of that verdict; with it, for replies of one token, (P(y|x, c) + β π_0(y|x)) / (1 + β).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lodestar.config import ModelConfig, TrainingConfig
from lodestar.data.control import Control
from lodestar.data.rows import encode_demonstrations, encode_rows
from lodestar.model.control import add_control_tokens
from lodestar.model.fused import fuse
from lodestar.model.loading import load_causal_lm, load_tokenizer, resolve_device
from lodestar.model.packed import head_divergence, head_logprobs, response_states
from lodestar.records import Scored
from lodestar.train.fit import Fit
from lodestar.train.language import LanguageObjective, fit_language, mean_surprise, packed_rows
from lodestar.train.progress import Progress
from lodestar.train.start import precision, start_model


@dataclass(frozen=True, slots=True)
class Labelled:
    """A reply and the index of its control token, 0 is the best: ``Labelled("what … ?", "blue", 0)``."""

    prompt: str
    completion: str
    token: int
    ended: bool = True
    """Whether the reply ended by itself; one that was cut off is taught without an end."""


class ConditionedObjective(LanguageObjective):
    """The mean negative log-likelihood of each row's reply, and β times the mean KL of the reference to it."""

    def __init__(
        self,
        train: Sequence[Scored],
        held_out: Sequence[Scored],
        batch_tokens: int,
        *,
        config: ModelConfig,
        control: Control,
        reference: Any = None,
        beta: float = 0.0,
    ) -> None:
        """``reference`` is π_0, which may lack the control tokens and reads none; needed where ``beta`` is above 0."""
        super().__init__(train, held_out, batch_tokens, config=config)
        self._control = control
        self._reference = reference
        self._beta = beta

    def loss(self, model: nn.Module, rows: Sequence[int]) -> Tensor:
        """Nats per token over the rows."""
        if not self._beta:
            return super().loss(model, rows)
        scored = [self._train[row] for row in rows]
        batch = packed_rows(model, scored)
        with precision(self._config):
            states_RH = response_states(model, batch)
            surprise = mean_surprise(model, states_RH, batch)
            return surprise + self._beta * self._divergence(model, states_RH, scored).mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The loss over all held-out tokens, and what it is made of."""
        if not self._beta:
            return super().evaluate(model)
        total, divergence, tokens = 0.0, 0.0, 0
        for scored in self._held_out:
            batch = packed_rows(model, scored)
            with precision(self._config):
                states_RH = response_states(model, batch)
                logprobs_R, _ = head_logprobs(model, states_RH, batch.targets_R, temperature=1.0, whole=True)
                divergence += float(self._divergence(model, states_RH, scored).sum())
            total, tokens = total - float(logprobs_R.sum()), tokens + len(logprobs_R)
        likelihood, kl = total / tokens, divergence / tokens
        return {"held_out_loss": likelihood + self._beta * kl, "held_out_nll": likelihood, "held_out_kl": kl}

    def _divergence(self, model: nn.Module, states_RH: Tensor, scored: Sequence[Scored]) -> Tensor:
        bare = [self._control.without_scored(row) for row in scored]
        with torch.no_grad():
            reference_RH = response_states(self._reference, packed_rows(model, bare))
        return head_divergence(model, states_RH, self._reference, reference_RH, temperature=1.0, forward=True)


def encode_labelled(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Labelled]) -> list[Scored]:
    """Each row under its own control token."""
    control = Control.of(tokenizer)
    found: dict[int, Scored] = {}
    for ended, encode in ((True, encode_demonstrations), (False, _encode_cut_off)):
        places = [place for place, row in enumerate(rows) if row.ended == ended]
        encoded = encode(tokenizer, [rows[i].prompt for i in places], [rows[i].completion for i in places])
        found.update(zip(places, encoded, strict=True))
    return [control.before_scored(found[place], row.token) for place, row in enumerate(rows)]


def _encode_cut_off(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str]
) -> list[Scored]:
    return encode_rows(tokenizer, prompts, completions, ended=False)


def train_conditioned(
    name: str,
    training: TrainingConfig,
    model: ModelConfig,
    *,
    tokens: Sequence[str],
    key: str,
    train: Sequence[Labelled],
    held_out: Sequence[Labelled],
    start: Path,
    tokenizer: Path,
    output: Path,
    state: Path,
    seed: int,
    reference: Path | None = None,
    beta: float = 0.0,
    progress: Progress | None = None,
) -> Fit:
    """Trains ``start`` on replies under control tokens; ``output`` is served with the best of them.

    Args:
        tokens: control tokens, the best first. key: of the option that names them.
        reference: π_0 of the KL, needed where ``beta`` is above 0. The others: see lodestar.train.language.pretrain.

    Raises:
        ConfigError: a control token that cannot be added.
        ResumeRefused, NonFinite: see fit.
    """
    words = load_tokenizer(tokenizer)
    trained = start_model(model, start, words, seed)
    control = add_control_tokens(trained, words, tokens, key=key, seed=seed)
    taught, apart = encode_labelled(words, train), encode_labelled(words, held_out)
    held = None
    if beta:
        held = load_causal_lm(str(reference), device=str(resolve_device(model.device))).requires_grad_(False)
        if model.dtype == "float32":
            fuse(held)
    objective = ConditionedObjective(
        taught, apart, training.batch_tokens, config=model, control=control, reference=held, beta=beta
    )
    return fit_language(name, training, model, trained, words, objective, taught, apart, output, state, seed, progress)
