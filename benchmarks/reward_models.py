"""Reward models from real feedback, each from nothing on one core: cards, and the figures of docs/log.md.

    python benchmarks/reward_models.py hh hh-by-file oasst --data ../shared/data --seeds 0 1 2
    python benchmarks/reward_models.py fine-grained pandalm tulu topical data-to-text summeval taskmaster --seeds 0

Rows are split by prompt 80/20; a part of the 80 is held out for early stopping and the temperature. Nothing of the test
rows is seen by tokenizer, language model or reward model. The first seed's cards go to docs/cards/NAME.json: numbers
and no text; ``lodestar card docs/cards/NAME.json`` draws one. ``hh`` also judges the hhh-alignment pairs, a test set.
reward_world.py has the synthetic world.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from lodestar.config import ModelConfig, RewardTrainingConfig
from lodestar.data.feedback import read_feedback_file
from lodestar.data.files import BadRows, DataFiles, read_demonstrations, read_feedback, write_jsonl
from lodestar.data.hh import Dialogues
from lodestar.data.rows import encode_rows
from lodestar.data.schema import Example
from lodestar.data.survey import split_rows
from lodestar.data.tokenizer import train_tokenizer
from lodestar.files import read_json, write_atomically
from lodestar.model.loading import load_scalar_model, load_tokenizer, new_causal_lm, save_model
from lodestar.preference.baselines import BagOfWords, length_differences
from lodestar.preference.card import Judged, make_card
from lodestar.preference.pairs import comparisons
from lodestar.preference.statistics import accuracy, accuracy_difference
from lodestar.records import Demonstration, Feedback
from lodestar.train import RewardTraining
from lodestar.train.progress import Silent
from lodestar.train.reward import judge

CARDS = Path(__file__).parents[1] / "docs" / "cards"
RESULTS = Path(__file__).parent / "results" / "reward_models.json"
SMALL = {"hidden_size": 256, "intermediate_size": 640, "layers": 1, "heads": 4, "kv_heads": 4, "context_tokens": 512}
"""2.9 million parameters with a vocabulary of 8,192."""
TRAINING: dict[str, Any] = {
    "epochs": 4,
    "batch_tokens": 16384,
    "learning_rate": 3e-4,
    "evaluations_per_epoch": 2,
    "patience": 4,
    "score_tokens": "all",
    "weight_decay": 0.1,
}


@dataclass(frozen=True)
class DataSet:
    """A published set as it is trained on."""

    files: tuple[str, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of TRAINING."""
    held_out: float = 0.1
    """Of the training rows."""
    context: int = 512
    by_file: tuple[Mapping[str, Any], ...] = ()
    """Further changes for each file, which gets a model of its own, as helpfulness and safety do in Llama 2; figures
    and card are of all together. Empty: one model of all files."""


HH = ("hh-rlhf/helpful-base.test.jsonl.gz", "hh-rlhf/harmless-base.test.jsonl.gz")
BRIEF = {"batch_tokens": 4096, "epochs": 2}
SETS = {
    "hh": DataSet(
        HH,
        {
            "batch_tokens": 8192,
            "epochs": 2,
            "learning_rate": 2e-5,
            "patience": 9,
            "ensemble": 4,
            "ensemble_of": "models",
        },
        held_out=0.15,
    ),
    "hh-by-file": DataSet(
        HH,
        {"learning_rate": 1e-4, "patience": 9, "ensemble": 4, "ensemble_of": "models"},
        held_out=0.15,
        by_file=({"epochs": 2, "score_tokens": "last"}, {"epochs": 3, "batch_tokens": 8192}),
    ),
    "oasst": DataSet(("oasst-trees/en_100_tree.jsonl.gz",)),
    "fine-grained": DataSet(("fine-grained-rlhf/dev_feedback.json.gz",)),
    "pandalm": DataSet(("pandalm/testset-v1.json.gz",), BRIEF),
    "tulu": DataSet(("human-eval-tulu/eval_annotations_tulu_1.csv.gz",), BRIEF | {"annotators": "agreement"}),
    "topical": DataSet(
        ("likert-topical-chat/topical_chat.json.gz",),
        BRIEF | {"aspects": ["engagingness", "naturalness", "overall"], "epochs": 8},
        context=1024,
    ),
    "data-to-text": DataSet(
        ("likert-data2text/sfres.json.gz", "likert-data2text/sfhot.json.gz"),
        BRIEF | {"aspects": ["informativeness", "naturalness", "overall"], "epochs": 8},
    ),
    "summeval": DataSet(
        ("summeval/data.jsonl.gz",),
        BRIEF | {"aspects": ["coherence", "consistency", "fluency", "relevance"], "batch_tokens": 32768, "epochs": 4},
        context=1024,
    ),
    "taskmaster": DataSet(
        (
            "taskmaster-reward/TM-4-2024.reward_00.json.gz",
            "taskmaster-reward/TM-4-2024.reward_01.json.gz",
            "taskmaster-reward/TM-3-2020.reward_00.json.gz",
        ),
        BRIEF | {"aspects": ["approval"]},
    ),
}
ALIGNMENT = "hhh-alignment/hhh_alignment_eval.json.gz"


def main() -> None:
    """Runs what was asked for and prints a line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[*SETS], help=f"{', '.join(SETS)}; unset: all of them")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for what in options.what:
        for row in figures(what, options.data, options.seeds):
            keep(what, row)


def figures(name: str, data: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Trains on a published set once per seed, each on a split of its own; the last row pools the seeds.

    The pooled differences are bootstrapped over prompts: a prompt in two seeds' test sets is one piece of evidence.
    ``bag_of_words_per_file`` is fitted to each file alone, as a set's models are where it is trained ``by_file``.
    """
    chosen, bad = SETS[name], BadRows(strict=False)
    files = [read_feedback_file(data / file, Dialogues(), bad) for file in chosen.files]
    everything = [row for file in files for row in file]
    parts = list(zip(chosen.by_file, files, strict=True)) if chosen.by_file else [({}, everything)]
    found, opinions = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as temporary:
            trained = [
                Trained(Path(temporary) / str(i), rows, chosen, changes, seed)
                for i, (changes, rows) in enumerate(parts)
            ]
            rated = trained[0].training.aspects
            judged = None if rated else judged_on("evaluation", trained)
            card = card_of(trained, judged) if judged and chosen.by_file else trained[0].card
            card |= {"source": list(chosen.files), "seed": seed, "bad_rows": len(bad.errors)}
            card |= {"long_rows": sum(one.long_rows for one in trained)}
            if seed == seeds[0]:
                _write_card(name, card)
            found.append(_row(card) | {"seed": seed})
            if judged:
                opinions += _opinions(trained, judged)
            if name == "hh" and seed == seeds[0]:
                keep("hhh", _row(alignment_card(trained[0], data / ALIGNMENT)) | {"seed": seed})
    return [*found, pooled(opinions, len(seeds))] if opinions else found


class Trained:
    """A reward model of some rows, in a folder of its own, from random weights."""

    def __init__(
        self,
        path: Path,
        rows: Sequence[Example[Feedback]],
        chosen: DataSet,
        changes: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.files, self.seed, self.reward = DataFiles(path), seed, path / "reward"
        tokenizer = {"kind": "bpe", "vocab_size": 8192}
        architecture = SMALL | {"context_tokens": chosen.context}
        self.model = ModelConfig.model_validate({"architecture": architecture, "tokenizer": tokenizer})
        self.training = RewardTrainingConfig.model_validate(TRAINING | {**chosen.changes, **changes})
        self.long_rows = write_split(rows, self.model, self.files, seed=seed, held_out=chosen.held_out)
        self.tokenizer = load_tokenizer(self.files.tokenizer)
        save_model(new_causal_lm(self.model.architecture, self.tokenizer, seed), self.tokenizer, path / "start")
        self.card = trained_card(self.training, self.model, path, path, path / "start", seed)

    @cached_property
    def models(self) -> list[Any]:
        """The members."""
        return members(self.reward)

    def feedback(self, split: str) -> list[Feedback]:
        """The rows of a split."""
        return read_feedback(self.files.feedback(split))

    def shown(self) -> list[Feedback]:
        """Held-out demonstrations, whose mean score is the zero."""
        read = read_demonstrations(self.files.demonstrations("held_out"))
        return [Feedback(row.prompt, (row.completion,), ()) for row in read]

    def judge(self, rows: Sequence[Feedback]) -> Judged:
        """Scores by the mean of the members, in units of the temperature where their held-out rows support one."""
        judged = judge(self.models, self.tokenizer, rows, self.training, self.model)
        calibration = self.card["calibration"]
        unit = calibration["temperature"] if "scaled" in calibration else 1.0
        return replace(
            judged,
            scores=[score / unit for score in judged.scores],
            deviations=None if judged.deviations is None else [deviation / unit for deviation in judged.deviations],
        )


def trained_card(
    training: RewardTrainingConfig, model: ModelConfig, path: Path, demonstrations: Path, start: Path, seed: int
) -> dict[str, Any]:
    """Trains on ``path/feedback`` what becomes ``path/reward``; its card."""
    RewardTraining(
        training,
        model,
        feedback=[path / "feedback"],
        demonstrations=demonstrations / "demonstrations",
        start=start,
        state=path / "state",
        seed=seed,
        progress=Said(),
    ).run(path / "reward")
    return read_json(path / "reward" / "card.json")


def members(reward: Path) -> list[Any]:
    """The models of a reward ensemble, or its one."""
    return [load_scalar_model(path) for path in (reward, *sorted(reward.glob("member-*")))]


def pooled(opinions: Sequence[tuple[str, float, float, float, float, float]], seeds: int) -> dict[str, Any]:
    """The figures of several seeds' test pairs together."""
    prompts, ours, labels, *theirs = zip(*opinions, strict=True)
    pool: dict[str, Any] = {"seed": -1, "seeds": seeds, "accuracy": asdict(accuracy(ours, labels, prompts))}
    for baseline, opinion in zip(("bag_of_words", "bag_of_words_per_file", "longer_is_better"), theirs, strict=True):
        pool[baseline] = {
            "accuracy": asdict(accuracy(opinion, labels, prompts)),
            "difference": asdict(accuracy_difference(ours, opinion, labels, prompts)),
        }
    return rounded(pool)


def _opinions(trained: Sequence[Trained], judged: Judged) -> list[tuple[str, float, float, float, float, float]]:
    """Prompt, the model's difference, label, and the baselines' differences, of every test pair."""
    train = comparisons([row for one in trained for row in one.feedback("train")])
    test = judged.comparisons
    subsets = {row.subset for row in (*train, *test)}
    own = {name: BagOfWords([row for row in train if row.subset == name] or train) for name in subsets}
    return [
        (row.prompt, difference, row.label, words, own[row.subset].differences([row])[0], longer)
        for row, difference, words, longer in zip(
            test, judged.differences, BagOfWords(train).differences(test), length_differences(test), strict=True
        )
    ]


def card_of(trained: Sequence[Trained], judged: Judged) -> dict[str, Any]:
    """The card of models on what they judged together, beside baselines fitted to the rows of all of them."""
    return make_card(
        comparisons([row for one in trained for row in one.feedback("train")]),
        judged,
        together([one.judge(one.shown()) for one in trained]).scores,
        judged_on("held_out", trained),
    )


def judged_on(split: str, trained: Sequence[Trained]) -> Judged:
    """A split of each model's rows by that model, one after another."""
    return together([one.judge(one.feedback(split)) for one in trained])


def together(parts: Sequence[Judged]) -> Judged:
    """One after another."""
    deviations = [one.deviations for one in parts if one.deviations is not None]
    return Judged(
        [row for one in parts for row in one.feedback],
        [score for one in parts for score in one.scores],
        [length for one in parts for length in one.lengths],
        deviations=list(chain.from_iterable(deviations)) if len(deviations) == len(parts) else None,
    )


def alignment_card(trained: Trained, path: Path) -> dict[str, Any]:
    """The card of HH's model on the hhh-alignment pairs, no row of which it has seen; also to docs/cards."""
    bad = BadRows(strict=False)
    rows = [row.record for row in read_feedback_file(path, Dialogues(), bad)]
    kept = fitting(trained.tokenizer, rows, trained.model)
    card = card_of([trained], trained.judge(kept))
    card |= {"source": [ALIGNMENT], "trained_on": list(HH), "seed": trained.seed}
    card |= {"bad_rows": len(bad.errors), "long_rows": len(rows) - len(kept)}
    _write_card("hhh", card)
    return card


def write_split(
    rows: Sequence[Example[Feedback]], model: ModelConfig, files: DataFiles, *, seed: int, held_out: float
) -> int:
    """Writes the run's files from an 80/20 split by prompt; returns the rows left out as too long."""
    learned, apart = split_rows(rows, held_out=0.2, seed=seed)
    family = {row.record.id: row.family for row in rows}
    train, stop = split_rows([Example(family[row.id], row) for row in learned], held_out=held_out, seed=seed + 1)
    texts = [text for row in train for text in (row.prompt, *row.completions)]
    tokenizer = train_tokenizer(model.tokenizer, texts, context_tokens=model.architecture.context_tokens)
    tokenizer.save_pretrained(files.tokenizer)
    kept = {
        split: fitting(tokenizer, records, model)
        for split, records in (("train", train), ("held_out", stop), ("evaluation", apart))
    }
    for split, records in kept.items():
        write_jsonl(files.feedback(split), records)
    shown = [Demonstration(row.prompt, row.completions[0], row.id) for row in kept["held_out"][:200]]
    write_jsonl(files.demonstrations("held_out"), shown)
    return len(train) + len(stop) + len(apart) - sum(map(len, kept.values()))


def fitting(tokenizer: Any, rows: Sequence[Feedback], model: ModelConfig) -> list[Feedback]:
    """The rows all of whose completions fit the context."""
    longest = model.architecture.context_tokens

    def length(row: Feedback) -> int:
        encoded = encode_rows(tokenizer, [row.prompt] * len(row.completions), row.completions)
        return max(len(scored.token_ids) for scored in encoded)

    return [row for row in rows if length(row) <= longest]


def _write_card(name: str, card: dict[str, Any]) -> None:
    CARDS.mkdir(exist_ok=True)
    write_atomically(CARDS / f"{name}.json", json.dumps(rounded(card)) + "\n")


def _row(card: dict[str, Any]) -> dict[str, Any]:
    wanted = ("accuracy", "baselines", "against_baselines", "kendall_tau", "aspects", "bad_rows", "long_rows")
    row = {name: card[name] for name in wanted if name in card}
    row["subsets"] = {
        name: {k: v["value"] for k, v in rates.items()} for name, rates in card.get("subsets", {}).items()
    }
    calibration = card.get("calibration", {})
    row |= {name: calibration[name] for name in ("ece", "temperature") if name in calibration}
    if "scaled" in calibration:
        row |= {f"{name}_scaled": calibration["scaled"][name] for name in ("ece", "ece_of_chance")}
    row["seconds"] = card.get("training", {}).get("seconds", 0.0)
    return rounded(row)


def rounded(value: Any) -> Any:
    """Floats to four significant digits, all the way down."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def keep(what: str, row: dict[str, Any]) -> None:
    """Prints a result and adds it to the results file."""
    print(json.dumps({"what": what, **row}), flush=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    others = [one for one in kept.get(what, []) if one["seed"] != row["seed"]]
    kept[what] = sorted([*others, row], key=lambda one: one["seed"])
    write_atomically(RESULTS, json.dumps(kept, indent=1) + "\n")


class Said(Silent):
    """Prints held-out figures as they come."""

    def metrics(self, values: Any) -> None:
        """One line."""
        print("   ", time.strftime("%H:%M:%S"), {name: round(value, 4) for name, value in values.items()}, flush=True)


if __name__ == "__main__":
    main()
