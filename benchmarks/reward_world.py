"""Reward models in the synthetic world, where the true reward is known: share of the best possible, and K-way batches.

    python benchmarks/reward_world.py bayes groups --seeds 0 1 2

Of a seed's 120 contents, of 64 requests each, 22 are for tests: no demonstration, contrast or comparison is of those.

bayes   2,000 comparisons by an annotator of known noise, after an SFT model of 40,000 demonstrations and two reward
        models of contrasts made from these and judged by that model's likelihoods (lodestar/data/contrasts.py,
        lodestar/train/likelihood.py), none of which has seen a comparison. Each of the two is the start of four
        models of the comparisons; the reward is the mean of the eight.
groups  500 rankings of six replies in K-way batches against their 7,500 pairs as rows of their own: same start, same
        optimizer steps, same tokens per step.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from reward_models import Said, keep, members, rounded, trained_card

from lodestar.config import ModelConfig, RewardTrainingConfig, TrainingConfig
from lodestar.data.contrasts import contrasts
from lodestar.data.files import DataFiles, write_jsonl
from lodestar.data.tokenizer import train_tokenizer
from lodestar.data.world import Annotator, Request, edit, every_request, gold_reward, rank, write
from lodestar.data.world.replies import demonstrator, uneven_writer
from lodestar.model.fused import fuse
from lodestar.model.loading import load_causal_lm, load_tokenizer
from lodestar.preference.calibration import win_probability
from lodestar.preference.card import make_card
from lodestar.preference.pairs import choices, comparisons
from lodestar.preference.statistics import accuracy, accuracy_difference
from lodestar.records import Choice, Demonstration, Feedback
from lodestar.train import train_sft
from lodestar.train.likelihood import judged_by_likelihood
from lodestar.train.reward import judge

SIZES = {"hidden_size": 96, "intermediate_size": 256, "layers": 3, "heads": 4, "kv_heads": 4, "context_tokens": 96}
MODEL = ModelConfig.model_validate({"architecture": SIZES})
"""A third of a million parameters."""
SFT = TrainingConfig(batch_tokens=2048, epochs=1, learning_rate=2e-3, evaluations_per_epoch=2)
TRAINING: dict[str, Any] = {
    "batch_tokens": 2048,
    "learning_rate": 1e-3,
    "evaluations_per_epoch": 1,
    "score_tokens": "all",
}
TEST_CONTENTS = 22
DEMONSTRATIONS = 40_000
CONTRASTS = 100_000
TEMPERATURE = 3.0
"""Of the labels: log-likelihoods of two completions differ by some ten nats."""
STARTS = 2
CONTRASTING = {"epochs": 1, "evaluations_per_epoch": 3, "patience": 9, "learning_rate": 1.5e-3, "centering": 0}
COMPARING = {
    "epochs": 3,
    "patience": 9,
    "learning_rate": 4e-4,
    "centering": 0,
    "ensemble": 4,
    "ensemble_of": "models",
}
"""Not centred: the starts' scores are sums of some ten nats, which the penalty would flatten before all else."""
NOISE = 0.5
GROUPING = {"score_tokens": "last", "batch_tokens": 4096, "patience": 99}
EPOCHS = {"groups": 10, "pairs": 2}
"""As many steps: a group holds each of its six completions once, its pairs on their own five times."""


class Start:
    """What a seed's measurements start from, in a folder of its own: requests, an SFT model, a reward model."""

    def __init__(self, seed: int, path: Path) -> None:
        self.seed, self._path, self._sft = seed, path, path / "sft"
        requests = every_request()
        random.Random(f"{seed}/requests").shuffle(requests)
        kept = set(list(dict.fromkeys(request.content for request in requests))[:TEST_CONTENTS])
        self.tested = [request for request in requests if request.content in kept]
        self.learned = [request for request in requests if request.content not in kept]
        self._language()

    def _language(self) -> None:
        rng, shown = random.Random(f"{self.seed}/shown"), []
        for i in range(DEMONSTRATIONS):
            request = rng.choice(self.learned)
            shown.append(Demonstration(request.text, write(request, demonstrator(rng), rng).text, f"d{i}"))
        self._shown = shown
        files = DataFiles(self._path)
        write_jsonl(files.demonstrations("train"), shown[:-400])
        write_jsonl(files.demonstrations("held_out"), shown[-400:])
        texts = [text for row in shown for text in (row.prompt, row.completion)]
        train_tokenizer(MODEL.tokenizer, texts, context_tokens=96).save_pretrained(files.tokenizer)
        train_sft(
            SFT,
            MODEL,
            demonstrations=self._path / "demonstrations",
            start=None,
            tokenizer=files.tokenizer,
            output=self._sft,
            state=self._path / "sft.pt",
            seed=self.seed,
            progress=Said(),
        )

    def contrasted(self) -> list[Path]:
        """Reward models of the same contrasts from different seeds."""
        made, language_model = contrasts(self._shown, CONTRASTS + 300, seed=self.seed), load_causal_lm(self._sft)
        fuse(language_model)
        rows = judged_by_likelihood(language_model, load_tokenizer(self._sft), made, temperature=TEMPERATURE)
        parts = {"train": rows[:-300], "held_out": rows[-300:], "evaluation": rows[-300:]}
        paths = [self._path / f"start-{i}" for i in range(STARTS)]
        for i, path in enumerate(paths):
            self._trained(parts, CONTRASTING, self.seed + 1000 * i, path)
        return [path / "reward" for path in paths]

    def train(
        self, parts: dict[str, list[Feedback]], changes: dict[str, Any], starts: Sequence[Path | None] = (None,)
    ) -> tuple[dict[str, Any], list[float]]:
        """The card and the test pairs' score differences of the reward models trained on ``parts`` from each start."""
        with tempfile.TemporaryDirectory() as temporary:
            paths = [Path(temporary) / str(i) for i in range(len(starts))]
            cards = [
                self._trained(parts, changes | {"start": str(start) if start else None}, self.seed, path)
                for path, start in zip(paths, starts, strict=True)
            ]
            models = [model for path in paths for model in members(path / "reward")]
        tokenizer, training = load_tokenizer(self._sft), _training(changes)
        held_out, judged = (
            judge(models, tokenizer, parts[split], training, MODEL) for split in ("held_out", "evaluation")
        )
        # no demonstrations: nobody looks at this card's zero
        card = make_card(comparisons(parts["train"]), judged, (), held_out)
        card["training"] = cards[0]["training"] | {"seconds": sum(one["training"]["seconds"] for one in cards)}
        return card, judged.differences

    def _trained(
        self, parts: Mapping[str, list[Feedback]], changes: dict[str, Any], seed: int, path: Path
    ) -> dict[str, Any]:
        """Makes ``path/reward``, a reward model of ``parts``; its card."""
        for split, rows in parts.items():
            write_jsonl(DataFiles(path).feedback(split), rows)
        return trained_card(_training(changes), MODEL, path, self._path, self._sft, seed)


def main() -> None:
    """Runs what was asked for and prints a line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["bayes", "groups"], help="bayes, groups; unset: both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    grouped = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            start = Start(seed, Path(temporary))
            if "groups" in options.what:
                row, opinions = groups_against_pairs(start)
                grouped.append(opinions)
                keep("world-groups", row)
            if "bayes" in options.what:
                keep("world-bayes", bayes_share(start))
    if len(grouped) > 1:
        keep("world-groups", pooled(grouped))


def bayes_share(start: Start, votes: int = 2000, tests: int = 8400) -> dict[str, Any]:
    """2,000 comparisons by an annotator of known noise: share of the Bayes-optimal accuracy on noisy votes.

    The optimal judge knows the gold reward and is right as often as the noise allows: mean of σ(|gap| / noise).
    ``share`` is of votes, as anybody could count; ``share_expected`` takes each vote's probability for the vote.
    """
    rng = random.Random(f"{start.seed}/bayes")
    rows = _voted(start.learned, votes, rng)
    held = votes // 10
    test = _voted(start.tested, tests, rng)
    parts = {"train": rows[:-held], "held_out": rows[-held:], "evaluation": test}
    card, differences = start.train(parts, COMPARING, start.contrasted())
    gaps = [row.gold[0] - row.gold[1] for row in test if row.gold]
    labels = [row.verdict[0].label for row in test if isinstance(row.verdict, tuple)]
    wins = [win_probability(gap / NOISE) for gap in gaps]
    best = sum(max(win, 1 - win) for win in wins) / len(wins)
    ours = sum(win if difference > 0 else 1 - win for difference, win in zip(differences, wins, strict=True))
    of_gold = accuracy(gaps, labels)
    return rounded(
        {
            "seed": start.seed,
            "accuracy": card["accuracy"],
            "bayes_on_these_votes": of_gold.value,
            "share": card["accuracy"]["value"] / of_gold.value,
            "bayes_expected": best,
            "share_expected": ours / len(wins) / best,
            "against_gold": card["gold"]["model"]["value"],
            "ece": card["calibration"]["ece"],
            "ece_scaled": card["calibration"].get("scaled", {}).get("ece"),
            "seconds": card["training"]["seconds"],
        }
    )


def groups_against_pairs(start: Start) -> tuple[dict[str, Any], list[list[Any]]]:
    """500 rankings of six replies, whole or as their 7,500 pairs on their own, from one start; and every test pair's
    prompt, truth and score differences."""
    rng = random.Random(f"{start.seed}/groups")
    panel = Annotator("one", noise=0.8, length_liking=0.0, flattery_liking=0.0)
    ranked = []
    for i, request in enumerate([*start.learned[:600], *start.tested[:300]]):
        replies: dict[str, None] = {}
        while len(replies) < 6:
            replies[write(request, uneven_writer(rng), rng).text] = None
        ranked.append(rank(request.text, list(replies), panel, rng, row=f"g{i}"))
    parts = {"train": ranked[:500], "held_out": ranked[500:600], "evaluation": ranked[600:]}
    test = [pair for group in parts["evaluation"] for pair in alone(group)]
    gaps = [row.gold[0] - row.gold[1] for row in test if row.gold]
    opinions: list[list[Any]] = [
        [f"{start.seed}: {row.prompt}" for row in test],
        [0.5 if gap == 0 else float(gap > 0) for gap in gaps],
    ]
    found: dict[str, Any] = {"seed": start.seed}
    for name, train in (("groups", parts["train"]), ("pairs", [p for g in parts["train"] for p in alone(g)])):
        changes = GROUPING | {"epochs": EPOCHS[name], "evaluations_per_epoch": 10 // EPOCHS[name]}
        card, differences = start.train(parts | {"train": train}, changes)
        opinions.append(differences)
        found[name] = {
            "accuracy": asdict(accuracy(differences, opinions[1], opinions[0])),
            "kendall_tau": card["kendall_tau"]["value"],
            "steps": card["training"]["steps"],
            "best_step": card["training"]["best_step"],
            "seconds_per_epoch": card["training"]["seconds"] / EPOCHS[name],
        }
    found["difference"] = asdict(accuracy_difference(opinions[2], opinions[3], opinions[1], opinions[0]))
    found["epoch_ratio"] = found["pairs"]["seconds_per_epoch"] / found["groups"]["seconds_per_epoch"]
    return rounded(found), opinions


def pooled(seeds: Sequence[list[list[Any]]]) -> dict[str, Any]:
    """All seeds' test pairs together, bootstrapped over prompts."""
    prompts, truth, groups, pairs = ([value for seed in seeds for value in seed[i]] for i in range(4))
    return rounded(
        {
            "seed": -1,
            "seeds": len(seeds),
            "groups": asdict(accuracy(groups, truth, prompts)),
            "pairs": asdict(accuracy(pairs, truth, prompts)),
            "difference": asdict(accuracy_difference(groups, pairs, truth, prompts)),
        }
    )


def alone(group: Feedback) -> list[Feedback]:
    """The pairs of a ranking as rows of their own."""
    return [
        Feedback(
            group.prompt,
            (group.completions[choice.first], group.completions[choice.second]),
            (Choice(0, 1, choice.label),),
            f"{group.id}.{choice.first}.{choice.second}",
            group.annotator,
            gold=(group.gold[choice.first], group.gold[choice.second]) if group.gold else None,
        )
        for choice in choices(group)
    ]


def _voted(requests: Sequence[Request], count: int, rng: random.Random) -> list[Feedback]:
    """One vote each on pairs of replies to the requests in turn; every other pair is a reply and an edit of it."""
    annotator = Annotator("known", noise=NOISE, length_liking=0.0, flattery_liking=0.0)
    rows = []
    for i, request in zip(range(count), cycle(requests), strict=False):
        first = second = write(request, uneven_writer(rng), rng)
        while second.text == first.text:
            second = edit(first, request, uneven_writer(rng), rng) if i % 2 else write(request, uneven_writer(rng), rng)
        vote = float(annotator.prefers_first(request.text, first.text, second.text, rng))
        gold = tuple(gold_reward(request.text, draft.text) for draft in (first, second))
        rows.append(
            Feedback(request.text, (first.text, second.text), (Choice(0, 1, vote),), f"b{i}", "known", gold=gold)
        )
    return rows


def _training(changes: dict[str, Any]) -> RewardTrainingConfig:
    return RewardTrainingConfig.model_validate(TRAINING | changes)


if __name__ == "__main__":
    main()
