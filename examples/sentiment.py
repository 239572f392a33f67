"""Positive continuations of film reviews, the task of Ziegler et al. 2019: data for examples/sentiment.yaml, its judge,
and what its runs found.

    python examples/sentiment.py prepare FOLDER data/sentiment     needs scikit-learn
    lodestar run examples/sentiment.yaml
    python examples/sentiment.py report runs/sentiment …

FOLDER holds three public sets as their authors give them away: movie-reviews/movie_reviews.zip (Pang & Lee 2004),
sentence-polarity/rt-polarity.{pos,neg}.gz (Pang & Lee 2005), sentiment-labelled-sentences/*_labelled.txt.gz (Kotzias et
al. 2015). What they become:

    text.txt               reviews and sentences to pretrain on
    demonstrations.jsonl   a sentence's opening and how it goes on, praise and blame alike
    positive.jsonl         those of praise alone, for SFT on the positive
    comparisons.jsonl      one opening and two sentences that go on from it: people called one praise, the other blame
    prompts.jsonl          openings of reviews that nothing is trained on
    judge.json             a bag of words fitted to the third set, whose sentences and labels no stage sees
"""

from __future__ import annotations

import argparse
import functools
import gzip
import itertools
import json
import math
import os
import random
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

OPENINGS = (3, 2, 1)
"""Words that a comparison's two sentences share, the longest that both a positive and a negative one begin with."""
PAIRS_EACH = 2
"""Comparisons that a sentence of the commoner side of an opening is in."""
KEPT_REVIEWS = 160
"""Whose openings are prompts; nothing is trained on them."""
PROMPT_WORDS = (3, 4, 5)
LEAST_WORDS = 4
"""Of a continuation in the data."""
WORDS = re.compile(r"[a-z']+")


# --- the data ---------------------------------------------------------------------------------------------------------
def prepare(source: Path, target: Path, seed: int) -> dict[str, int | float]:
    """Writes the files; returns how many rows each has and how well the judge does."""
    rng = random.Random(f"{seed}/sentiment")
    praise, blame = (_sentences(source / f"sentence-polarity/rt-polarity.{side}.gz") for side in ("pos", "neg"))
    reviews = _reviews(source / "movie-reviews/movie_reviews.zip")
    rng.shuffle(reviews)
    kept, read = reviews[:KEPT_REVIEWS], reviews[KEPT_REVIEWS:]
    target.mkdir(parents=True, exist_ok=True)
    sentences = [*praise, *blame]
    rng.shuffle(sentences)
    documents = ["\n".join(review) for review in read] + [
        "\n".join(sentences[i : i + 20]) for i in range(0, len(sentences), 20)
    ]
    (target / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    liked = set(praise)
    shown = [(sentence in liked, _demonstration(sentence, rng)) for sentence in sentences if _is_long(sentence)]
    rows = {
        "demonstrations": [row for _, row in shown],
        "positive": [row for good, row in shown if good],
        "comparisons": _comparisons(praise, blame, rng),
        "prompts": _prompts(kept, rng),
    }
    for name, lines in rows.items():
        (target / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    judge_figures = _fit_judge(source / "sentiment-labelled-sentences", target / "judge.json", praise, blame)
    return {name: len(lines) for name, lines in rows.items()} | {"documents": len(documents)} | judge_figures


def _sentences(path: Path) -> list[str]:
    with gzip.open(path) as file:
        return [" ".join(_decoded(line).split()) for line in file if line.strip()]


def _decoded(text: bytes) -> str:
    """UTF-8 where it is that: the sets mix it with Latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _reviews(path: Path) -> list[list[str]]:
    """Each review's sentences, a line each."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
        texts = [_decoded(archive.read(name)) for name in names]
    return [[" ".join(line.split()) for line in text.splitlines() if line.strip()] for text in texts]


def _is_long(sentence: str) -> bool:
    return len(sentence.split()) >= max(PROMPT_WORDS) + LEAST_WORDS


def _parted(sentence: str, words: int) -> tuple[str, str]:
    """Opening and continuation; the space between belongs to the latter, as in running text."""
    parts = sentence.split()
    return " ".join(parts[:words]), " " + " ".join(parts[words:])


def _demonstration(sentence: str, rng: random.Random) -> dict[str, str]:
    prompt, completion = _parted(sentence, rng.choice((1, 2, *PROMPT_WORDS)))
    return {"prompt": prompt, "completion": completion}


def _comparisons(praise: Sequence[str], blame: Sequence[str], rng: random.Random) -> list[dict[str, str]]:
    """Each sentence at the longest opening that one of the other side shares."""
    left = [[s for s in side if len(s.split()) >= max(OPENINGS) + LEAST_WORDS] for side in (praise, blame)]
    rows: list[dict[str, str]] = []
    for words in OPENINGS:
        groups: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for side, sentences in enumerate(left):
            for sentence in sentences:
                opening, rest = _parted(sentence, words)
                groups[opening][side].append(rest)
        shared = {opening: sides for opening, sides in groups.items() if all(sides)}
        left = [[s for s in side if _parted(s, words)[0] not in shared] for side in left]
        for opening, (good, bad) in shared.items():
            pairs = {
                (good[i % len(good)], rng.choice(bad))
                if len(good) >= len(bad)
                else (rng.choice(good), bad[i % len(bad)])
                for i in range(PAIRS_EACH * max(len(good), len(bad)))
            }
            rows += [{"prompt": opening, "chosen": one, "rejected": other} for one, other in sorted(pairs)]
    rng.shuffle(rows)
    return rows


def _prompts(reviews: Sequence[Sequence[str]], rng: random.Random) -> list[dict[str, str]]:
    """Openings of sentences, each once."""
    long = [sentence for review in reviews for sentence in review if _is_long(sentence)]
    openings = dict.fromkeys(_parted(sentence, rng.choice(PROMPT_WORDS))[0] for sentence in long)
    return [{"prompt": opening} for opening in openings]


# --- the judge --------------------------------------------------------------------------------------------------------
def features(text: str) -> list[str]:
    """Words and pairs of neighbours, each once."""
    words = WORDS.findall(text.lower())
    return list(dict.fromkeys([*words, *(" ".join(pair) for pair in itertools.pairwise(words))]))


def _fit_judge(folder: Path, target: Path, praise: Sequence[str], blame: Sequence[str]) -> dict[str, float]:
    """Logistic regression; its accuracy by ten folds on its own sentences, and on the film sentences, which it never
    sees."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline

    texts, labels = [], []
    for path in sorted(folder.glob("*_labelled.txt.gz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            for line in file:
                text, _, label = line.rstrip("\n").rpartition("\t")
                if label.strip() in ("0", "1"):
                    texts.append(text)
                    labels.append(int(label))
    if not texts:
        raise SystemExit(f"{folder} holds no *_labelled.txt.gz with lines TEXT<tab>0|1")
    counts = CountVectorizer(analyzer=features, binary=True, min_df=2)
    model = make_pipeline(counts, LogisticRegression(C=1.0, max_iter=1000))
    folds = cross_val_score(model, texts, labels, cv=10)
    model.fit(texts, labels)
    films = model.score([*praise, *blame], [1] * len(praise) + [0] * len(blame))
    fitted = model[-1]
    weights = {name: round(float(fitted.coef_[0][i]), 5) for name, i in counts.vocabulary_.items()}
    target.write_text(json.dumps({"bias": float(fitted.intercept_[0]), "weights": weights}), encoding="utf-8")
    return {
        "judge_accuracy_ten_folds": round(float(folds.mean()), 4),
        "judge_accuracy_on_films": round(float(films), 4),
    }


@functools.cache
def _weights(path: Path) -> tuple[float, dict[str, float]]:
    judge_file = json.loads(path.read_text(encoding="utf-8"))
    return judge_file["bias"], judge_file["weights"]


def judge(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Log-odds that a continuation is praise, by judge.json below the folder that SENTIMENT names (data/sentiment)."""
    bias, weights = _weights(Path(os.environ.get("SENTIMENT", "data/sentiment")) / "judge.json")
    return [bias + math.fsum(weights.get(name, 0.0) for name in features(text)) for text in completions]


# --- what runs found --------------------------------------------------------------------------------------------------
def report(roots: Iterable[Path]) -> list[dict[str, Any]]:
    """A row per run and model: share of continuations that the judge calls praise, with Clopper and Pearson's interval,
    KL in nats per continuation, the reward's mean score, the SFT model's perplexity, and how many word pairs are
    distinct."""
    from lodestar.evaluation import clopper_pearson
    from lodestar.recipe.folder import RunFolder

    rows = []
    for root in roots:
        folder = RunFolder.open(root)
        step = folder.plan.last("evaluate")
        samples, found = folder.rows(step, "samples.jsonl"), folder.figures(step, "evaluation.json")
        if not samples:
            raise SystemExit(f"{root}: its evaluation is not done")
        for side in ("before", "after"):
            replies = [row[side] for row in samples if side in row]
            if not replies:
                continue
            texts = [reply["text"] for reply in replies]
            odds = judge([row["prompt"] for row in samples], texts)
            rate = clopper_pearson(sum(one > 0 for one in odds), len(odds))
            rows.append(
                {
                    "run": root.name,
                    "model": "SFT" if side == "before" else "trained",
                    "positive": rate.value,
                    "low": rate.low,
                    "high": rate.high,
                    "n": rate.n,
                    "score": sum(reply["score"] for reply in replies) / len(replies),
                    "kl": 0.0 if side == "before" else found["policy"]["kl"],
                    "perplexity": perplexity(
                        folder.store.path("sft/policy"), [row["prompt"] for row in samples], replies
                    ),
                    "distinct_2": distinct(texts),
                    "tokens": sum(reply["tokens"] for reply in replies) / len(replies),
                }
            )
    return rows


def distinct(texts: Iterable[str], n: int = 2) -> float:
    """Share of different n-grams of words among all of them (Li et al. 2016, distinct-n)."""
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.split()
        grams.update(zip(*(words[i:] for i in range(n)), strict=False))
    return len(grams) / max(1, sum(grams.values()))


def perplexity(model: Path, prompts: Sequence[str], replies: Sequence[dict[str, Any]]) -> float:
    """exp of the mean nats per token under a model, the end of the text a token where there is one."""
    import torch

    from lodestar.data.rows import encode_rows
    from lodestar.model.loading import load_causal_lm
    from lodestar.model.packed import PackedBatch, response_logprobs
    from lodestar.model.tokenizers import load_tokenizer

    words, start = load_tokenizer(model), load_causal_lm(str(model), device="cpu")
    rows = [
        encode_rows(words, [prompt], [reply["text"]], ended=reply["finish_reason"] == "eos")[0]
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    with torch.inference_mode():
        logprobs_R, _ = response_logprobs(start, PackedBatch.of(rows, device="cpu"), temperature=1.0)
    return math.exp(-float(logprobs_R.mean()))


def curve(root: Path) -> list[dict[str, float]]:
    """PPO's path: nats from the SFT model, the reward's score and the judge's log-odds, by step."""
    from lodestar.recipe.folder import RunFolder

    folder = RunFolder.open(root)
    steps = folder.rows(folder.last("ppo"), "metrics.jsonl")
    names = {"step": "step", "kl": "kl_sequence", "score": "score", "judge": "gold"}
    return [{name: row[key] for name, key in names.items() if row.get(key) is not None} for row in steps]


def main() -> None:
    """prepare or report."""
    parser = argparse.ArgumentParser(description="Data, judge and figures of examples/sentiment.yaml")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("prepare", help="write the data of a folder of public sets")
    making.add_argument("source", type=Path)
    making.add_argument("target", type=Path)
    making.add_argument("--seed", type=int, default=1)
    telling = commands.add_parser("report", help="judge what runs' models write")
    telling.add_argument("runs", type=Path, nargs="+")
    told = parser.parse_args()
    if told.command == "prepare":
        print(json.dumps(prepare(told.source, told.target, told.seed), indent=1))
        return
    for row in report(told.runs):
        print(
            f"{row['run']:24} {row['model']:8} positive {row['positive']:.1%} ({row['low']:.1%}–{row['high']:.1%}) of "
            f"{row['n']}, KL {row['kl']:.2f}, score {row['score']:+.2f}, perplexity {row['perplexity']:.1f}, "
            f"distinct-2 {row['distinct_2']:.3f}, {row['tokens']:.1f} tokens"
        )
    for root in told.runs:
        for row in curve(root):
            print(f"{root.name}: " + "  ".join(f"{name} {value:.3g}" for name, value in row.items()))


if __name__ == "__main__":
    main()
