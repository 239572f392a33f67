"""Pretraining and SFT: next-token cross-entropy, on every token of plain text or on completions only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from lodestar.config import RunConfig, TrainingConfig
from lodestar.data.files import DataFiles, read_demonstrations, read_text
from lodestar.data.rows import encode_demonstrations, encode_documents
from lodestar.layout import RunFolder
from lodestar.model.loading import save_model
from lodestar.model.packed import PackedBatch, head_loss, response_logprobs, response_states
from lodestar.ppo.losses import language_model_loss
from lodestar.records import Scored
from lodestar.train.batches import batches_of
from lodestar.train.fit import Fit, fit
from lodestar.train.progress import Progress, Silent
from lodestar.train.stage import identity, policy_tokenizer, precision, start_model, state_file, trainable


class LanguageObjective:
    """Mean negative log-likelihood of each row's tokens after its prompt."""

    def __init__(
        self, train: Sequence[Scored], held_out: Sequence[Scored], batch_tokens: int, *, config: RunConfig
    ) -> None:
        self.lengths = [len(row.token_ids) for row in train]
        self._train = train
        self._config = config
        by_length = sorted(held_out, key=lambda row: len(row.token_ids))
        order = batches_of([len(row.token_ids) for row in by_length], batch_tokens, range(len(by_length)))
        self._held_out = [[by_length[row] for row in batch] for batch in order]

    def loss(self, model: nn.Module, rows: Sequence[int]) -> Tensor:
        """Nats per token over the rows."""
        batch = _packed(model, [self._train[row] for row in rows])
        tokens = len(batch.targets_R)
        with precision(self._config):
            states_RH = response_states(model, batch)
            return head_loss(
                model,
                states_RH,
                batch.targets_R,
                lambda _, logprobs_C, __: language_model_loss(logprobs_C, tokens=tokens),
                temperature=1.0,
            )[0]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nats per token over all held-out tokens."""
        total, tokens = 0.0, 0
        for batch in self._held_out:
            with precision(self._config):
                logprobs_R, _ = response_logprobs(model, _packed(model, batch), temperature=1.0)
            total, tokens = total - float(logprobs_R.sum()), tokens + len(logprobs_R)
        return {"held_out_loss": total / tokens}


def _packed(model: nn.Module, rows: Sequence[Scored]) -> PackedBatch:
    device = next(model.parameters()).device
    return PackedBatch.pack([row.token_ids for row in rows], [row.prompt_tokens for row in rows], device=device)


def pretrain(config: RunConfig, folder: RunFolder, progress: Progress | None = None) -> Fit:
    """Language modelling on the run's plain text; writes ``folder.pretrained``.

    Raises:
        DataError: the data stage has not written text files.
        ResumeRefused, NonFinite: see fit.
    """
    assert config.pretrain is not None, "the run does not pretrain"
    files, tokenizer = DataFiles.of(folder), policy_tokenizer(config, folder)
    longest = min(config.data.max_tokens, tokenizer.model_max_length)
    train, held_out = (
        [Scored(piece, prompt_tokens=1) for piece in encode_documents(tokenizer, read_text(text), longest=longest)]
        for text in (files.text("train"), files.text("held_out"))
    )
    return _run("pretrain", config.pretrain, config, folder, folder.pretrained, train, held_out, (), progress)


def train_sft(config: RunConfig, folder: RunFolder, progress: Progress | None = None) -> Fit:
    """Fine-tuning on the demonstrations' completions; writes ``folder.sft``, with its minimum's weights.

    Raises:
        DataError: the data stage has not run.
        ResumeRefused, NonFinite: see fit.
    """
    assert config.sft is not None, "the run has no SFT stage"
    files, tokenizer = DataFiles.of(folder), policy_tokenizer(config, folder)
    train, held_out = (
        encode_demonstrations(tokenizer, [row.prompt for row in rows], [row.completion for row in rows])
        for rows in (read_demonstrations(files.demonstrations(split)) for split in ("train", "held_out"))
    )
    return _run("sft", config.sft, config, folder, folder.sft, train, held_out, (folder.pretrained,), progress)


def _run(
    name: str,
    training: TrainingConfig,
    config: RunConfig,
    folder: RunFolder,
    output: Path,
    train: list[Scored],
    held_out: list[Scored],
    earlier: tuple[Path, ...],
    progress: Progress | None,
) -> Fit:
    tokenizer = policy_tokenizer(config, folder)
    model = start_model(config, tokenizer, *earlier)
    digests = identity(training, config.seed, model, train, held_out)
    trained = trainable(config, model)
    objective = LanguageObjective(train, held_out, training.batch_tokens, config=config)
    result = fit(
        name,
        trained,
        objective,
        training,
        seed=config.seed,
        state_file=state_file(output),
        identity=digests,
        progress=progress or Silent(),
    )
    save_model(trained, tokenizer, output)
    state_file(output).unlink(missing_ok=True)
    return result
