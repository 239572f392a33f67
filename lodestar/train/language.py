"""Pretraining and SFT: next-token cross-entropy, on every token of plain text or on completions only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lodestar.config import ModelConfig, TrainingConfig
from lodestar.data.files import read_demonstrations, read_text
from lodestar.data.rows import encode_demonstrations, encode_documents
from lodestar.model.context import check_lengths
from lodestar.model.loading import load_tokenizer, save_model
from lodestar.model.packed import PackedBatch, head_loss, response_logprobs, response_states
from lodestar.packing import batches_of
from lodestar.ppo.losses import language_model_loss
from lodestar.records import Scored
from lodestar.train.fit import Fit, fit
from lodestar.train.progress import Progress, Silent
from lodestar.train.start import identity, precision, start_model, trainable


class LanguageObjective:
    """Mean negative log-likelihood of each row's tokens after its prompt."""

    def __init__(
        self, train: Sequence[Scored], held_out: Sequence[Scored], batch_tokens: int, *, config: ModelConfig
    ) -> None:
        self.lengths = [len(row.token_ids) for row in train]
        self._train = train
        self._config = config
        by_length = sorted(held_out, key=lambda row: len(row.token_ids))
        self._held_out = [*batches_of(by_length, batch_tokens, lambda row: len(row.token_ids))]

    def loss(self, model: nn.Module, rows: Sequence[int]) -> Tensor:
        """Nats per token over the rows."""
        batch = packed_rows(model, [self._train[row] for row in rows])
        with precision(self._config):
            return mean_surprise(model, response_states(model, batch), batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nats per token over all held-out tokens."""
        total, tokens = 0.0, 0
        for batch in self._held_out:
            with precision(self._config):
                logprobs_R, _ = response_logprobs(model, packed_rows(model, batch), temperature=1.0, whole=True)
            total, tokens = total - float(logprobs_R.sum()), tokens + len(logprobs_R)
        return {"held_out_loss": total / tokens}


def mean_surprise(model: nn.Module, states_RH: Tensor, batch: PackedBatch) -> Tensor:
    """The mean negative log-likelihood of a batch's response tokens, nats, from the states before them."""
    tokens = len(batch.targets_R)
    return head_loss(
        model,
        states_RH,
        batch.targets_R,
        lambda _, logprobs_C, __: language_model_loss(logprobs_C, tokens=tokens),
        temperature=1.0,
        whole=True,
    )[0]


def packed_rows(model: nn.Module, rows: Sequence[Scored]) -> PackedBatch:
    """The rows as one batch on the model's device."""
    device = next(model.parameters()).device
    return PackedBatch.of(rows, device=device)


def pretrain(
    training: TrainingConfig,
    model: ModelConfig,
    *,
    text: Path,
    start: Path | None,
    tokenizer: Path,
    output: Path,
    state: Path,
    seed: int,
    document_tokens: int = 512,
    progress: Progress | None = None,
) -> Fit:
    """Language modelling on plain text.

    Args:
        text: folder of {train,held_out}.jsonl. start: the model to go on from; None makes a ``model.architecture``.
        output: folder of the trained model. state: file of the unfinished training, from which it goes on after a kill.
        document_tokens: longer documents are cut into pieces of this many.

    Raises:
        DataError: the text is missing or damaged.
        ResumeRefused, NonFinite: see fit.
    """
    words = load_tokenizer(tokenizer)
    longest = min(document_tokens, words.model_max_length)
    train, held_out = (
        [Scored(piece, prompt_tokens=1) for piece in encode_documents(words, read_text(rows), longest=longest)]
        for rows in (text / "train.jsonl", text / "held_out.jsonl")
    )
    trained = start_model(model, start, words, seed)
    objective = LanguageObjective(train, held_out, training.batch_tokens, config=model)
    return fit_language(
        "pretrain", training, model, trained, words, objective, train, held_out, output, state, seed, progress
    )


def train_sft(
    training: TrainingConfig,
    model: ModelConfig,
    *,
    demonstrations: Path,
    start: Path | None,
    tokenizer: Path,
    output: Path,
    state: Path,
    seed: int,
    progress: Progress | None = None,
) -> Fit:
    """Fine-tuning on the completions of demonstrations; ``output`` gets the weights of the least held-out loss.

    Args:
        demonstrations: folder of {train,held_out}.jsonl. The others: see pretrain.

    Raises:
        DataError: the demonstrations are missing or damaged.
        ResumeRefused, NonFinite: see fit.
    """
    words = load_tokenizer(tokenizer)
    train, held_out = (
        encode_demonstrations(words, [row.prompt for row in rows], [row.completion for row in rows])
        for rows in (read_demonstrations(demonstrations / f"{split}.jsonl") for split in ("train", "held_out"))
    )
    trained = start_model(model, start, words, seed)
    objective = LanguageObjective(train, held_out, training.batch_tokens, config=model)
    return fit_language(
        "sft", training, model, trained, words, objective, train, held_out, output, state, seed, progress
    )


def fit_language(
    name: str,
    training: TrainingConfig,
    config: ModelConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    objective: LanguageObjective,
    train: Sequence[Scored],
    held_out: Sequence[Scored],
    output: Path,
    state: Path,
    seed: int,
    progress: Progress | None,
) -> Fit:
    """Minimises an objective of these rows and saves the model with its tokenizer; see pretrain."""
    check_lengths(model.config, (len(row.token_ids) for row in (*train, *held_out)), f"{name}'s rows")
    digests = identity(training, seed, model, train, held_out)
    trained = trainable(config, model)
    progress = progress or Silent()
    result = fit(name, trained, objective, training, seed=seed, state_file=state, identity=digests, progress=progress)
    save_model(trained, tokenizer, output)
    state.unlink(missing_ok=True)
    return result
