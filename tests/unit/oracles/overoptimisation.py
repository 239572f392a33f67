"""Tiny PPO runs whose proxy reward is learned from comparisons: one that can be hacked and one that cannot.

Responses are over 4 symbols with EOS, up to 5 tokens; one of the symbols is sugar. The gold reward of a response is a
linear worth of its words and pairs of words, and every piece of sugar beyond the first costs. Sugar is rare in what
the start policy says, and its first piece is welcome.

    honest    Bradley–Terry on every feature of gold, from comparisons of responses of all kinds
    hacked    the same without the feature of too much sugar, from comparisons of what the start policy says: the first
              piece was preferred, so more must be better

Both proxies are fits with real errors; which one a run gets is the only difference between hacked and healthy.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import torch
from lodestar_services.learner.trainer import Trainer
from lodestar_services.learner.watch import OverOptimisationWatch
from torch import Tensor

from lodestar.config import WatchConfig
from lodestar.preference.losses import bradley_terry
from tests.unit.oracles.world import EOS, Responses, config, sequences_of, tables

SUGAR = 3
LONGEST = 5
JUDGE = "gold"
MEMBERS = 5
"""Of the proxy's ensemble; the score is their mean."""
COMPARISONS = 600
"""Per member."""
STEPS = 60
BATCH = 64


@dataclass(frozen=True)
class Run:
    """What one run showed."""

    alarm_step: int | None
    """Of the watch with a held-out judge."""
    blind_step: int | None
    """Of a watch without one, which has the ensemble's disagreement alone."""
    scores: list[float]
    gold: list[float]
    """Exact, of the policy after each step: not the judge's batch means that the watch sees."""
    accuracy: float
    """Of the proxy on pairs of the start policy's responses."""

    @property
    def fall(self) -> float:
        """How far gold ended below its peak."""
        return max(self.gold) - self.gold[-1]

    @property
    def hacked(self) -> bool:
        """By the truth: gold ended a fifth of a nat of preference below its peak, and the score above where it was."""
        return self.fall > 0.2 and self.scores[-1] > self.scores[0]


def features(responses: Responses) -> tuple[Tensor, Tensor]:
    """[responses, F] counts of symbols and of neighbouring pairs, and [responses] pieces of sugar beyond the first."""
    rows = []
    for response in responses.all:
        words = [symbol for symbol in response if symbol != EOS]
        pairs = list(itertools.pairwise(words))
        counted = [float(words.count(symbol)) for symbol in (0, 2, SUGAR)]
        counted += [float(pairs.count((a, b))) for a in (0, 2) for b in (0, 2)]
        rows.append([*counted, float(response[-1] == EOS)])
    excess = [max(0.0, response.count(SUGAR) - 1.0) for response in responses.all]
    return torch.tensor(rows), torch.tensor(excess)


def learned_proxy(features_RF: Tensor, gold_R: Tensor, weights_R: Tensor, generator: torch.Generator) -> Tensor:
    """A Bradley–Terry fit on comparisons of responses drawn by ``weights_R``: its score of every response."""
    drawn = torch.multinomial(weights_R, 2 * COMPARISONS, replacement=True, generator=generator).view(2, -1)
    wins = torch.rand(COMPARISONS, generator=generator) < (gold_R[drawn[0]] - gold_R[drawn[1]]).sigmoid()
    difference_CF = features_RF[drawn[0]] - features_RF[drawn[1]]
    weight_F = torch.zeros(features_RF.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_F], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = bradley_terry(difference_CF @ weight_F, wins.float()).mean() + 1e-4 * weight_F.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (features_RF @ weight_F).detach()


def run(
    kind: Literal["honest", "hacked"],
    seed: int,
    *,
    beta: float = 0.05,
    learning_rate: float = 0.1,
) -> Run:
    """One PPO run through the trainer, watched as the learner watches it, with a judge and without."""
    generator = torch.Generator().manual_seed(seed)
    responses = Responses([0], sequences_of([0, 1, 2, SUGAR], longest=LONGEST))
    policy, critic = tables(4, LONGEST + 1, seed)
    with torch.no_grad():  # sugar is rare at first
        policy.table.states.weight[:, SUGAR] -= 2.0
    counts_RF, excess_R = features(responses)
    worth_F = 0.2 * torch.randn(counts_RF.shape[1], generator=generator)
    worth_F[2] = 1.0
    gold_R = counts_RF @ worth_F - 2.0 * excess_R
    start_R = responses.log_distribution(policy).exp()
    if kind == "honest":
        seen_RF = torch.cat((counts_RF, excess_R[:, None]), dim=1)
        everything_R = 0.5 * start_R + 0.5 / len(responses.all)
        proxy_MR = [learned_proxy(seen_RF, gold_R, everything_R, generator) for _ in range(MEMBERS)]
    else:
        proxy_MR = [learned_proxy(counts_RF, gold_R, start_R, generator) for _ in range(MEMBERS)]
    deviation_R, proxy_R = torch.std_mean(torch.stack(proxy_MR), dim=0, correction=0)
    ppo = config(
        steps=STEPS, batch=BATCH, epochs=2, learning_rate=learning_rate, kl={"coefficient": beta},
        critic={"learning_rate": 0.1},
    )  # fmt: skip
    trainer = Trainer(ppo, policy, critic, seed=seed)
    watch, blind = OverOptimisationWatch(WatchConfig(), JUDGE), OverOptimisationWatch(WatchConfig(), None)
    reference = responses.token_logprobs(policy)
    number = {response: i for i, response in enumerate(responses.all)}
    scores, gold = [], []
    for _ in range(STEPS):
        rollouts = []
        for one in responses.rollouts(policy, reference, proxy_R, BATCH, generator):
            (sample,) = one.samples
            i = number[sample.token_ids]
            told = replace(sample, heads={JUDGE: float(gold_R[i])}, score_standard_deviation=float(deviation_R[i]))
            rollouts.append(replace(one, samples=(told,)))
        figures = trainer.step(rollouts)
        watch.observe(rollouts, figures)
        blind.observe(rollouts, figures)
        scores.append(figures["score"])
        gold.append(float(responses.log_distribution(policy).exp() @ gold_R.double()))
    p_RR = start_R[:, None] * start_R[None]
    right_RR = ((proxy_R[:, None] - proxy_R[None]) * (gold_R[:, None] - gold_R[None]) > 0).double()
    decided_RR = (gold_R[:, None] != gold_R[None]).double() * p_RR
    accuracy = float((right_RR * decided_RR).sum() / decided_RR.sum())
    return Run(watch.alarm_step or None, blind.alarm_step or None, scores, gold, accuracy)
