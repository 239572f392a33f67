"""Reward models from real feedback, each from nothing on one core: cards, and the figures of docs/log.md.

    python benchmarks/reward_models.py hh --data ../shared/data --seeds 0 1 2
    python benchmarks/reward_models.py oasst fine-grained --data ../shared/data
    python benchmarks/reward_models.py world-groups world-bayes

Rows are split by prompt 80/20; a tenth of the 80 is held out for early stopping and the temperature. Nothing of the
test rows is seen by tokenizer or reward model. Cards go to docs/cards/NAME.json: numbers, no text.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lodestar.config import RunConfig
from lodestar.data.feedback import read_feedback_file
from lodestar.data.files import BadRows, DataFiles, read_comparisons, read_feedback, write_jsonl, write_text
from lodestar.data.hh import Dialogues
from lodestar.data.rows import encode_rows
from lodestar.data.schema import Example
from lodestar.data.survey import split_rows
from lodestar.data.tokenizer import train_tokenizer
from lodestar.data.world import Annotator, edit, every_request, gold_reward, rank, write
from lodestar.data.world.replies import DEMONSTRATION_MIX, WRITERS, uneven_writer
from lodestar.layout import RunFolder
from lodestar.model.loading import load_scalar_model, load_tokenizer
from lodestar.preference.baselines import BagOfWords, length_differences
from lodestar.preference.pairs import choices
from lodestar.preference.statistics import accuracy, accuracy_difference
from lodestar.records import Choice, Demonstration, Feedback
from lodestar.train import train_reward, train_sft
from lodestar.train.progress import Silent
from lodestar.train.reward import judge

CARDS = Path(__file__).parents[1] / "docs" / "cards"
RESULTS = Path(__file__).parent / "results" / "reward_models.json"
SMALL = {"hidden_size": 256, "intermediate_size": 640, "layers": 1, "heads": 4, "kv_heads": 4, "context_tokens": 512}
"""2.9 million parameters with a vocabulary of 8,192."""
TEXT_RUN: dict[str, Any] = {
    "model": {"architecture": SMALL, "tokenizer": {"kind": "bpe", "vocab_size": 8192}},
    "reward_model": {
        "epochs": 4,
        "batch_tokens": 16384,
        "learning_rate": 3e-4,
        "evaluations_per_epoch": 2,
        "patience": 4,
        "score_tokens": "all",
        "weight_decay": 0.1,
    },
    "evaluation": {"judge": "reward"},
    "data": {"kind": "jsonl", "root": "."},
}
WORLD_RUN: dict[str, Any] = {
    "model": {
        "architecture": {
            "hidden_size": 96,
            "intermediate_size": 256,
            "layers": 3,
            "heads": 4,
            "kv_heads": 4,
            "context_tokens": 96,
        }
    },
    "sft": {"batch_tokens": 2048, "epochs": 7, "learning_rate": 4e-3, "evaluations_per_epoch": 1, "max_seconds": 45},
    "data": {"max_prompt_tokens": 32},
    "ppo": {"max_tokens": 48},
    "reward_model": {"batch_tokens": 4096, "learning_rate": 2e-3, "evaluations_per_epoch": 1},
}
EPOCHS = {"groups": 10, "pairs": 2}
"""Groups see a completion once an epoch, their pairs on their own five times."""
FILES = {
    "hh": ("hh-rlhf/helpful-base.test.jsonl.gz", "hh-rlhf/harmless-base.test.jsonl.gz"),
    "oasst": ("oasst-trees/en_100_tree.jsonl.gz",),
    "fine-grained": ("fine-grained-rlhf/dev_feedback.json.gz",),
}


def main() -> None:
    """Runs what was asked for and prints a line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=[*FILES, "world-groups", "world-bayes"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE over the reward_model section, JSON values")
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in options.set)}
    for what in options.what:
        if what in FILES:
            for row in from_text(what, options.data, options.seeds, changes):
                _keep(what, row)
        elif what == "world-groups":
            _keep(what, groups_against_pairs(options.seeds[0]))
        else:
            for seed in options.seeds:
                _keep(what, bayes_share(seed))


def from_text(name: str, data: Path, seeds: Sequence[int], changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Trains one reward model per seed on a published set, each on a split of its own; the last row pools the seeds.

    The pooled differences are bootstrapped over prompts: a prompt in two seeds' test sets is one piece of evidence.
    ``bag_of_words_per_file`` is fitted to each file alone, which knows what kind of dialogue it judges.
    """
    bad = BadRows(strict=False)
    rows = [row for file in FILES[name] for row in read_feedback_file(data / file, Dialogues(), bad)]
    found, pooled = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as temporary:
            folder, config = RunFolder(Path(temporary)), _config(TEXT_RUN, seed, changes)
            long = write_split(rows, config, folder, seed=seed)
            train_reward(config, folder, Said())
            card = json.loads((folder.reward_model / "card.json").read_text())
            card |= {"source": list(FILES[name]), "seed": seed, "bad_rows": len(bad.errors), "long_rows": long}
            if seed == seeds[0]:
                CARDS.mkdir(exist_ok=True)
                write_text(CARDS / f"{name}.json", json.dumps(rounded(card)) + "\n")
            found.append(_figures(card) | {"seed": seed})
            pooled += _opinions(folder, config)
    prompts, ours, labels, *theirs = zip(*pooled, strict=True)
    pool: dict[str, Any] = {"seed": -1, "seeds": len(seeds), "accuracy": asdict(accuracy(ours, labels, prompts))}
    for baseline, opinion in zip(("bag_of_words", "bag_of_words_per_file", "longer_is_better"), theirs, strict=True):
        pool[baseline] = {
            "accuracy": asdict(accuracy(opinion, labels, prompts)),
            "difference": asdict(accuracy_difference(ours, opinion, labels, prompts)),
        }
    return [*found, rounded(pool)]


def _opinions(folder: RunFolder, config: RunConfig) -> list[tuple[str, float, float, float, float, float]]:
    """Prompt, the model's difference, label, and the baselines' differences, of every test pair."""
    files = DataFiles.of(folder)
    train = read_comparisons(files.comparisons("train"))
    model, tokenizer = load_scalar_model(folder.reward_model), load_tokenizer(folder.reward_model)
    judged = judge([model], tokenizer, read_feedback(files.comparisons("evaluation")), config)
    test = judged.comparisons
    subsets = {row.subset for row in train}
    own = {name: BagOfWords([row for row in train if row.subset == name]) for name in subsets}
    return [
        (row.prompt, difference, row.label, words, own[row.subset].differences([row])[0], longer)
        for row, difference, words, longer in zip(
            test, judged.differences, BagOfWords(train).differences(test), length_differences(test), strict=True
        )
    ]


def write_split(rows: Sequence[Example[Feedback]], config: RunConfig, folder: RunFolder, *, seed: int) -> int:
    """Writes the run's files from an 80/20 split by prompt; returns the rows left out as too long."""
    learned, apart = split_rows(rows, held_out=0.2, seed=seed)
    family = {row.record.id: row.family for row in rows}
    train, held_out = split_rows([Example(family[row.id], row) for row in learned], held_out=0.1, seed=seed + 1)
    files = DataFiles.of(folder)
    texts = [text for row in train for text in (row.prompt, *row.completions)]
    tokenizer = train_tokenizer(config.model.tokenizer, texts, context_tokens=config.model.architecture.context_tokens)
    tokenizer.save_pretrained(folder.tokenizer)
    longest = config.model.architecture.context_tokens
    left_out = 0
    for split, records in (("train", train), ("held_out", held_out), ("evaluation", apart)):
        kept = [
            row
            for row in records
            if max(
                len(scored.token_ids)
                for scored in encode_rows(tokenizer, [row.prompt] * len(row.completions), row.completions)
            )
            <= longest
        ]
        left_out += len(records) - len(kept)
        write_jsonl(files.comparisons(split), kept)
    shown = [Demonstration(row.prompt, row.completions[0], row.id) for row in held_out[:200]]
    write_jsonl(files.demonstrations("held_out"), [row for row in shown if len(row.prompt + row.completion) < 1000])
    return left_out


def groups_against_pairs(seed: int) -> dict[str, Any]:
    """The synthetic world: 500 rankings of six replies, whole or as their 7,500 pairs on their own, from one start."""
    rng = random.Random(f"{seed}/groups")
    panel = Annotator("one", noise=0.8, length_liking=0.0, flattery_liking=0.0)
    requests = every_request()
    rng.shuffle(requests)
    ranked = []
    for i, request in enumerate(requests[:900]):
        replies: dict[str, None] = {}
        while len(replies) < 6:
            replies[write(request, uneven_writer(rng), rng).text] = None
        ranked.append(rank(request.text, list(replies), panel, rng, row=f"g{i}"))
    parts = {"train": ranked[:500], "held_out": ranked[500:600], "evaluation": ranked[600:]}
    found: dict[str, Any] = {"seed": seed}
    language = Path(tempfile.mkdtemp()) / "language"
    for name, train in (("groups", parts["train"]), ("pairs", [p for g in parts["train"] for p in _alone(g)])):
        changes = {"epochs": EPOCHS[name], "patience": 3, "evaluations_per_epoch": 2}
        card = _train_world(parts | {"train": train}, changes, seed, language)
        steps, seconds = card["training"]["steps"], card["training"]["seconds"]
        found[name] = {
            "accuracy": card["gold"]["model"]["value"],
            "low": card["gold"]["model"]["low"],
            "high": card["gold"]["model"]["high"],
            "kendall_tau": card["kendall_tau"]["value"],
            "steps": steps,
            "seconds_per_epoch": _epoch_seconds(card, EPOCHS[name]),
            "seconds": round(seconds, 1),
        }
    found["epoch_ratio"] = found["pairs"]["seconds_per_epoch"] / found["groups"]["seconds_per_epoch"]
    return rounded(found)


def bayes_share(seed: int, comparisons: int = 2000) -> dict[str, Any]:
    """2,000 comparisons by an annotator of known noise: share of the Bayes-optimal accuracy on noisy votes.

    The optimal judge knows the gold reward and is right as often as the noise allows: mean of σ(|gap| / noise).
    """
    noise = 0.5
    rng = random.Random(f"{seed}/bayes")
    annotator = Annotator("known", noise=noise, length_liking=0.0, flattery_liking=0.0)
    requests = every_request()
    rng.shuffle(requests)
    rows = []
    for i in range(comparisons + 1400):
        request = requests[i % len(requests)]
        first = second = write(request, uneven_writer(rng), rng)
        while second.text == first.text:
            second = edit(first, request, uneven_writer(rng), rng) if i % 2 else write(request, uneven_writer(rng), rng)
        vote = float(annotator.prefers_first(request.text, first.text, second.text, rng))
        gold = tuple(gold_reward(request.text, draft.text) for draft in (first, second))
        rows.append(
            Feedback(request.text, (first.text, second.text), (Choice(0, 1, vote),), f"b{i}", "known", gold=gold)
        )
    held = comparisons // 10
    parts = {
        "train": rows[: comparisons - held],
        "held_out": rows[comparisons - held : comparisons],
        "evaluation": rows[comparisons:],
    }
    card = _train_world(parts, {"epochs": 12, "patience": 4, "batch_tokens": 2048, "learning_rate": 2e-3}, seed)
    gaps = [abs(row.gold[0] - row.gold[1]) / noise for row in parts["evaluation"] if row.gold]
    optimal = sum(1 / (1 + math.exp(-gap)) for gap in gaps) / len(gaps)
    of_gold = accuracy(
        [row.gold[0] - row.gold[1] for row in parts["evaluation"] if row.gold],
        [row.verdict[0].label for row in parts["evaluation"] if isinstance(row.verdict, tuple)],
    )
    return rounded(
        {
            "seed": seed,
            "accuracy": card["accuracy"],
            "bayes_expected": optimal,
            "bayes_on_these_votes": of_gold.value,
            "share": card["accuracy"]["value"] / of_gold.value,
            "against_gold": card["gold"]["model"]["value"],
            "ece": card["calibration"]["ece"],
            "seconds": card["training"]["seconds"],
        }
    )


def _train_world(
    parts: dict[str, list[Feedback]], changes: dict[str, Any], seed: int, language: Path | None = None
) -> dict[str, Any]:
    """The card of a reward model that starts from an SFT model of 6,000 demonstrations, none of them of a test prompt.

    ``language``: a folder to take that model from, or to leave it in.
    """
    config = _config(WORLD_RUN, seed, changes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary))
        files = DataFiles.of(folder)
        for split, rows in parts.items():
            write_jsonl(files.comparisons(split), rows)
        seen = {row.prompt for row in parts["evaluation"]}
        rng, requests = random.Random(f"{seed}/shown"), [one for one in every_request() if one.text not in seen]
        shown = []
        for i in range(6000):
            request, (writer,) = rng.choice(requests), rng.choices(WRITERS, DEMONSTRATION_MIX)
            shown.append(Demonstration(request.text, write(request, writer, rng).text, f"d{i}"))
        write_jsonl(files.demonstrations("train"), shown[:5600])
        write_jsonl(files.demonstrations("held_out"), shown[5600:])
        texts = [text for row in shown for text in (row.prompt, row.completion)]
        tokenizer = train_tokenizer(config.model.tokenizer, texts, context_tokens=96)
        tokenizer.save_pretrained(folder.tokenizer)
        if language is None or not language.exists():
            train_sft(config, folder, Said())
        else:
            shutil.copytree(language, folder.sft)
        if language is not None and not language.exists():
            shutil.copytree(folder.sft, language)
        train_reward(config, folder, Said())
        card: dict[str, Any] = json.loads((folder.reward_model / "card.json").read_text())
        return card


def _alone(group: Feedback) -> list[Feedback]:
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


def _epoch_seconds(card: dict[str, Any], epochs: float) -> float:
    history = card["training"]["history"]
    return float(history[-1]["seconds"] / (history[-1]["step"] / (card["training"]["planned"] / epochs)))


def _config(run: dict[str, Any], seed: int, changes: dict[str, Any]) -> RunConfig:
    merged = run | {"name": "figures", "seed": seed, "reward_model": run["reward_model"] | changes}
    return RunConfig.model_validate(merged)


def _figures(card: dict[str, Any]) -> dict[str, Any]:
    wanted = ("accuracy", "baselines", "against_baselines", "kendall_tau", "data", "bad_rows", "long_rows")
    row = {name: card[name] for name in wanted if name in card}
    row["subsets"] = {name: {k: v["value"] for k, v in rates.items()} for name, rates in card["subsets"].items()}
    row["ece"] = card["calibration"]["ece"]
    row["ece_scaled"] = card["calibration"]["scaled"]["ece"]
    row["temperature"] = card["calibration"]["temperature"]
    row["seconds"] = card["training"]["seconds"]
    return rounded(row)


def rounded(value: Any) -> Any:
    """Floats to four significant digits, all the way down."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _keep(what: str, row: dict[str, Any]) -> None:
    """Prints a result and adds it to the results file."""
    print(json.dumps({"what": what, **row}), flush=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    others = [one for one in kept.get(what, []) if one["seed"] != row["seed"]]
    kept[what] = sorted([*others, row], key=lambda one: one["seed"])
    write_text(RESULTS, json.dumps(kept, indent=1) + "\n")


class Said(Silent):
    """Prints held-out figures as they come."""

    def metrics(self, values: Any) -> None:
        """One line."""
        print("   ", time.strftime("%H:%M:%S"), {name: round(value, 4) for name, value in values.items()}, flush=True)


if __name__ == "__main__":
    main()
