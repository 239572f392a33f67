"""The data stage: reads a source, splits it, makes the tokenizer and writes the normal form (files.py).

Splits go by family: rows that began with the same question (the first message of a dialogue, else the prompt) stay
together.

- train: SFT, reward model and pretraining learn from it.
- held_out: their held-out loss and accuracy, by which they stop.
- evaluation: seen by no stage; the final judge's prompts and the reward model's card.

PPO's prompts are of no evaluation family and of no training comparison: the reward model scores prompts it has not
been fitted to.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from lodestar.config import DataConfig, ModelConfig
from lodestar.data.chat import ChatFormat
from lodestar.data.corpus import Corpus, Split, shuffle_labels, split_families
from lodestar.data.documents import documents
from lodestar.data.files import BadRows, DataFiles, write_jsonl
from lodestar.data.hub import read_hub
from lodestar.data.jsonl import read_files
from lodestar.data.rows import encode_prompts, encode_rows
from lodestar.data.schema import Example
from lodestar.data.synthetic import draw_corpus
from lodestar.data.tokenizer import template, train_tokenizer
from lodestar.errors import ConfigError, DataError
from lodestar.files import write_atomically
from lodestar.model.loading import context_tokens, load_tokenizer
from lodestar.records import Demonstration, Feedback
from lodestar.train.progress import Progress, Silent

Record = TypeVar("Record")
Counts = dict[str, int]
"""Rows per file, and ``bad_rows``, ``long_rows`` and ``long_prompts`` left out."""


def prepare(
    data: DataConfig,
    model: ModelConfig,
    files: DataFiles,
    *,
    seed: int,
    response_tokens: int = 0,
    progress: Progress | None = None,
) -> Counts:
    """Writes the run's data files and, when ``model.path`` is unset, its tokenizer. Returns what was counted.

    Args:
        response_tokens: the longest response that a later stage will sample; prompts must leave room for it.

    Raises:
        DataError: missing, empty or unusable files; with ``data.strict`` the first bad row.
        ConfigError: a tokenizer that cannot be made as configured, or prompts longer than the model's context.
        ModelError: ``model.path`` has no usable tokenizer or configuration.
    """
    progress = progress or Silent()
    progress.start("data", 4)
    bad = BadRows(strict=data.strict)
    tokenizer = None
    if model.path is not None:
        tokenizer = load_tokenizer(model.path)
        _check_context(data, model.path, response_tokens)
    chat = ChatFormat(tokenizer) if tokenizer else ChatFormat.of_template(template(model.tokenizer.kind))
    corpus = read_corpus(data, chat, bad, seed)
    if data.shuffle_labels:
        corpus = Corpus(corpus.demonstrations, shuffle_labels(corpus.feedback, seed), corpus.prompts)
    progress.advance()
    prompts = corpus.every_prompt()
    splits = split_families((prompt.family for prompt in prompts), data.held_out_fraction, seed)
    text = documents(data, corpus, splits, seed)
    if tokenizer is None:
        context = model.architecture.context_tokens
        texts = _tokenizer_texts(corpus, splits, text.get("train", []) if data.text else [])
        tokenizer = train_tokenizer(model.tokenizer, texts, context_tokens=context)
        tokenizer.save_pretrained(files.tokenizer)
    progress.advance()
    counts: Counts = {"bad_rows": len(bad.errors), "long_rows": 0, "long_prompts": 0}
    _write_rows(data, corpus, splits, tokenizer, files, counts)
    progress.advance()
    _write_prompts(data, seed, corpus, splits, tokenizer, files, counts)
    for split, pieces in text.items():
        write_jsonl(files.text(split), ({"text": piece} for piece in pieces))
        counts[f"text.{split}"] = len(pieces)
    write_atomically(files.bad_rows, "".join(f"{error}\n" for error in bad.errors))
    write_atomically(files.counts, json.dumps(counts, indent=2) + "\n")
    progress.advance()
    progress.metrics({name: float(count) for name, count in counts.items()})
    return counts


def _check_context(data: DataConfig, path: str, response_tokens: int) -> None:
    """Prompt and response must fit the model; for one made from nothing the plan's check sees to it."""
    wanted, context = data.max_prompt_tokens + response_tokens, context_tokens(path)
    if context is not None and wanted > context:
        raise ConfigError(
            "data.max_prompt_tokens",
            f"with ppo.max_tokens it is {wanted}, beyond the {context} tokens that {path} takes",
        )


def read_corpus(data: DataConfig, chat: ChatFormat, bad: BadRows, seed: int) -> Corpus:
    """Everything the configured source has, before any split."""
    if data.source == "synthetic":
        return draw_corpus(data, seed)
    return (read_hub if data.source == "hub" else read_files)(data, chat, bad)


def _write_rows(
    config: DataConfig,
    corpus: Corpus,
    splits: dict[str, Split],
    tokenizer: PreTrainedTokenizerBase,
    files: DataFiles,
    counts: Counts,
) -> None:
    longest = min(config.max_tokens, tokenizer.model_max_length)

    def fits(prompts: list[str], completions: list[str]) -> list[bool]:
        return [len(row.token_ids) <= longest for row in encode_rows(tokenizer, prompts, completions)]

    def demonstrations_fit(rows: Sequence[Demonstration]) -> list[bool]:
        return fits([row.prompt for row in rows], [row.completion for row in rows])

    def feedback_fits(rows: Sequence[Feedback]) -> list[bool]:
        prompts = [row.prompt for row in rows for _ in row.completions]
        answers = iter(fits(prompts, [completion for row in rows for completion in row.completions]))
        return [sum(not next(answers) for _ in row.completions) == 0 for row in rows]

    for split in ("train", "held_out"):
        rows = _kept(corpus.demonstrations, splits, split, demonstrations_fit, counts)
        _write(files.demonstrations(split), rows, counts, f"demonstrations.{split}", longest)
    for split in ("train", "held_out", "evaluation"):
        pairs = _kept(corpus.feedback, splits, split, feedback_fits, counts)
        _write(files.feedback(split), pairs, counts, f"comparisons.{split}", longest)


def _kept(
    examples: Iterable[Example[Record]],
    splits: dict[str, Split],
    split: str,
    fits: Callable[[Sequence[Record]], list[bool]],
    counts: Counts,
) -> list[Record]:
    """The split's records that are not too long."""
    records = [example.record for example in examples if splits[example.family] == split]
    kept = [record for record, fit in zip(records, fits(records), strict=True) if fit]
    counts["long_rows"] += len(records) - len(kept)
    return kept


def _write(path: Path, rows: Sequence[Demonstration | Feedback], counts: Counts, name: str, longest: int) -> None:
    if not rows:
        raise DataError(
            path,
            f"no rows are left for it: {counts['bad_rows']} rows were bad and {counts['long_rows']} longer than "
            f"{longest} tokens; give more data, or raise data.held_out_fraction or data.max_tokens",
        )
    write_jsonl(path, rows)
    counts[name] = len(rows)


def _write_prompts(
    config: DataConfig,
    seed: int,
    corpus: Corpus,
    splits: dict[str, Split],
    tokenizer: PreTrainedTokenizerBase,
    files: DataFiles,
    counts: Counts,
) -> None:
    prompts = corpus.every_prompt()
    random.Random(f"{seed}/prompts").shuffle(prompts)
    lengths = [len(row) for row in encode_prompts(tokenizer, [prompt.record for prompt in prompts])]
    short = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= config.max_prompt_tokens]
    counts["long_prompts"] = len(prompts) - len(short)
    learned = {row.family for row in corpus.feedback if splits[row.family] == "train"}
    ppo = [prompt for prompt in short if splits[prompt.family] != "evaluation" and prompt.family not in learned]
    evaluation = [prompt for prompt in short if splits[prompt.family] == "evaluation"]
    for path, name, chosen in (
        (files.prompts("ppo"), "ppo", ppo[: config.prompt_rows]),
        (files.prompts("evaluation"), "evaluation", evaluation[: config.evaluation_rows]),
    ):
        if not chosen:
            raise DataError(
                path,
                f"no prompt of at most data.max_prompt_tokens {config.max_prompt_tokens} tokens is left for it; "
                "raise that or data.held_out_fraction, or give more data",
            )
        write_jsonl(path, ({"id": f"{name}-{i}", "text": prompt.record} for i, prompt in enumerate(chosen)))
        counts[f"prompts.{name}"] = len(chosen)


def _tokenizer_texts(corpus: Corpus, splits: dict[str, Split], documents: list[str]) -> list[str]:
    """All text of the training split, each prompt once."""
    texts: dict[str, None] = {}
    for row in corpus.demonstrations:
        if splits[row.family] == "train":
            texts |= dict.fromkeys((row.record.prompt, row.record.completion))
    for pair in corpus.feedback:
        if splits[pair.family] == "train":
            texts |= dict.fromkeys((pair.record.prompt, *pair.record.completions))
    return [*texts, *documents]
