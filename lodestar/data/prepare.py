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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from lodestar.config import DataConfig, ModelConfig
from lodestar.data.chat import ChatFormat
from lodestar.data.corpus import Corpus, Split, shuffle_labels, split_families
from lodestar.data.dates import pinned
from lodestar.data.documents import documents
from lodestar.data.files import BadRows, DataFiles, write_jsonl
from lodestar.data.hub import read_hub
from lodestar.data.jsonl import read_files, reading_of
from lodestar.data.rows import encode_demonstrations, encode_prompts, encode_rows
from lodestar.data.schema import Example
from lodestar.data.synthetic import draw_corpus
from lodestar.data.tokenizer import DIALOGUE_TEMPLATE, template, train_tokenizer
from lodestar.errors import ConfigError, DataError
from lodestar.files import write_atomically
from lodestar.model.loading import context_tokens, load_tokenizer
from lodestar.records import Demonstration, Feedback
from lodestar.train.progress import Progress, Silent

Record = TypeVar("Record", Demonstration, Feedback)
SHOWN_CLASHES = 20
"""Joined families that are named; the others are counted."""
Counts = dict[str, int]
"""Rows per file, and ``bad_rows``, ``long_rows`` and ``long_prompts`` left out."""


def prepare(
    data: DataConfig,
    model: ModelConfig,
    files: DataFiles,
    *,
    seed: int,
    response_tokens: int = 0,
    needed: Mapping[str, str] | None = None,
    functions: bool = False,
    progress: Progress | None = None,
) -> Counts:
    """Writes the run's data files and its tokenizer. Returns what was counted.

    Args:
        response_tokens: the longest response that a later stage will sample; prompts must leave room for it.
        needed: who learns from ``demonstrations`` and ``feedback``: ``{"feedback": "stages.reward"}``. Those that
            nobody needs may be absent; their folders are then empty.
        functions: whether functions are among the reward's sources (see lodestar.data.jsonl.reading_of).

    Raises:
        DataError: missing, empty or unusable files, or none of what is needed; with ``data.strict`` the first bad row.
        ConfigError: a tokenizer that cannot be made as configured, or prompts longer than the model's context.
        ModelError: ``model.path`` has no usable tokenizer or configuration.
    """
    progress = progress or Silent()
    progress.start("data", 4)
    bad = BadRows(strict=data.strict)
    tokenizer = None
    if model.path is not None:
        tokenizer = run_tokenizer(model.path, data)
        tokenizer.save_pretrained(files.tokenizer)
        _check_context(data, model.path, response_tokens)
        chat = ChatFormat(tokenizer, merge_turns=data.merge_turns, fold_system=data.fold_system)
    else:
        chat = ChatFormat.of_template(template(model.tokenizer.kind))
    corpus = _checked(read_corpus(data, chat, bad, seed, functions=functions), data, needed or {})
    corpus, joined = corpus.one_family_per_prompt()
    for one, other in joined[:SHOWN_CLASHES]:
        bad.say(f"the families {one[:60]!r} and {other[:60]!r} share a prompt and count as one")
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
    counts |= {"cut_prompts": chat.cut_back, "merged_turns": chat.merged, "folded_systems": chat.folded}
    counts["joined_families"] = len(joined)
    _write_rows(data, _positions(data, model), corpus, splits, tokenizer, files, counts)
    progress.advance()
    _write_prompts(data, seed, corpus, splits, tokenizer, chat, files, counts)
    for split, pieces in text.items():
        write_jsonl(files.text(split), ({"text": piece} for piece in pieces))
        counts[f"text.{split}"] = len(pieces)
    if model.path is not None and data.strings == "text":
        _say_of_strings(corpus, bad)
    write_atomically(files.bad_rows, "".join(f"{error}\n" for error in bad.errors))
    write_atomically(files.notes, "".join(f"{note}\n" for note in (*bad.notes, *bad.unused.sentences())))
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


def run_tokenizer(path: str, data: DataConfig) -> PreTrainedTokenizerBase:
    """The start model's tokenizer as the run uses and saves it: with a chat template, whose date is ``data.date``.

    A tokenizer without a template gets HH's dialogues, so that what is trained can be asked.
    """
    tokenizer = load_tokenizer(path)
    if not tokenizer.chat_template:
        tokenizer.chat_template = DIALOGUE_TEMPLATE
    elif isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = pinned(tokenizer.chat_template, data.date)
    return tokenizer


def read_corpus(data: DataConfig, chat: ChatFormat, bad: BadRows, seed: int, *, functions: bool = False) -> Corpus:
    """Everything the configured source has, before any split. ``functions``: see reading_of."""
    if data.source == "synthetic":
        return draw_corpus(data, seed)
    return (read_hub if data.source == "hub" else read_files)(data, chat, bad, reading_of(data, functions=functions))


def _checked(corpus: Corpus, data: DataConfig, needed: Mapping[str, str]) -> Corpus:
    """Refuses a source that lacks what a stage of the run learns from.

    Raises:
        DataError: no feedback or no demonstrations, and a stage takes them.
    """
    root = str(data.root or "data")
    if not corpus.feedback and "feedback" in needed:
        raise DataError(
            root,
            f"holds no feedback, which {needed['feedback']} takes: name files of comparisons in data.files, or "
            "leave that stage out and let services.reward.sources be rules, functions or models that are trained "
            "already",
        )
    if not corpus.demonstrations and "demonstrations" in needed:
        raise DataError(
            root,
            f"holds no reply to imitate, which {needed['demonstrations']} takes: name data.demonstrations, or leave "
            "that out (for PPO: set score.offset to samples, none or a number)",
        )
    return corpus


def _say_of_strings(corpus: Corpus, bad: BadRows) -> None:
    rows: list[Example[Any]] = [*corpus.demonstrations, *corpus.feedback, *corpus.prompts]
    plain = sum(not row.messages for row in rows)
    if plain:
        bad.say(
            f"{plain} of {len(rows)} rows have strings for prompts, which are taken as they stand, without the "
            "model's chat template; data.strings: messages reads them as a user's words"
        )


def _write_rows(
    config: DataConfig,
    positions: int,
    corpus: Corpus,
    splits: dict[str, Split],
    tokenizer: PreTrainedTokenizerBase,
    files: DataFiles,
    counts: Counts,
) -> None:
    longest = min(config.max_tokens, tokenizer.model_max_length, positions)

    def demonstrations_fit(rows: Sequence[Demonstration]) -> list[bool]:
        encoded = encode_demonstrations(tokenizer, [row.prompt for row in rows], [row.completion for row in rows])
        return [len(row.token_ids) <= longest for row in encoded]

    def feedback_fits(rows: Sequence[Feedback]) -> list[bool]:
        prompts = [row.prompt for row in rows for _ in row.completions]
        encoded = iter(encode_rows(tokenizer, prompts, [text for row in rows for text in row.completions]))
        return [max(len(next(encoded).token_ids) for _ in row.completions) <= longest for row in rows]

    long: set[str] = set()
    if corpus.demonstrations:
        for split in ("train", "held_out"):
            rows = _kept(corpus.demonstrations, splits, split, demonstrations_fit, long)
            counts["long_rows"] = len(long)
            _write(files.demonstrations(split), rows, counts, f"demonstrations.{split}", longest)
    if corpus.feedback:
        for split in ("train", "held_out", "evaluation"):
            pairs = _kept(corpus.feedback, splits, split, feedback_fits, long)
            counts["long_rows"] = len(long)
            _write(files.feedback(split), pairs, counts, f"comparisons.{split}", longest)
    for path in (files.demonstrations("train"), files.feedback("train")):
        path.parent.mkdir(parents=True, exist_ok=True)  # an artifact without rows: no stage needs them


def _positions(data: DataConfig, model: ModelConfig) -> int:
    """Tokens that the start model has positions for."""
    if model.path is None:
        return model.architecture.context_tokens
    return context_tokens(model.path) or data.max_tokens


def _kept(
    examples: Iterable[Example[Record]],
    splits: dict[str, Split],
    split: str,
    fits: Callable[[Sequence[Record]], list[bool]],
    long: set[str],
) -> list[Record]:
    """The split's records that are not too long; the others' ids go to ``long``, where a row counts once."""
    records = [example.record for example in examples if splits[example.family] == split]
    fitting = fits(records)
    kept = [record for record, fit in zip(records, fitting, strict=True) if fit]
    long.update(record.id for record, fit in zip(records, fitting, strict=True) if not fit)
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
    chat: ChatFormat,
    files: DataFiles,
    counts: Counts,
) -> None:
    prompts = [_asked(prompt, chat) for prompt in corpus.every_prompt()]
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
        write_jsonl(path, (_prompt_row(f"{name}-{i}", prompt) for i, prompt in enumerate(chosen)))
        counts[f"prompts.{name}"] = len(chosen)


def _asked(prompt: Example[str], chat: ChatFormat) -> Example[str]:
    """The prompt as it is served: a reply's may have been cut back (ChatFormat.reply)."""
    return replace(prompt, record=chat.prompt(prompt.messages)) if prompt.messages and chat.cut_back else prompt


def _prompt_row(name: str, prompt: Example[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": name, "text": prompt.record}
    if prompt.messages:
        row["messages"] = [{"role": message.role, "content": message.content} for message in prompt.messages]
    return row | ({"columns": dict(prompt.columns)} if prompt.columns else {})


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
