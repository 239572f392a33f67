"""Scoring models: any AutoModelForSequenceClassification, read in the way that suits it.

    packed    decoders with a linear head named score, on our attention: many sequences, no padding, exact tokens
    padded    everything else: encoders (BERT, DeBERTa …), which read prompt and completion as a pair of texts in their
              own tokenizer's format, and decoders that our attention does not serve

A model with K labels gives K scores. A head saved by Lodestar carries its bias as ``score_bias`` of config.json, a
number or a list of K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lodestar.data.chat import ChatFormat
from lodestar.data.marks import Marks, unmarked
from lodestar.data.rows import encode_rows
from lodestar.errors import InvalidArgument, ModelError
from lodestar.model.context import UNLIMITED, context_tokens
from lodestar.model.loading import (
    load_classifier,
    load_tokenizer,
    resolve_device,
    tensor_digests,
    tokenizer_hash,
    weights_digest,
)
from lodestar.model.packed import PackedBatch, label_scores
from lodestar.model.prompt_once import shares_prompts
from lodestar.model.tokenizers import end_ids, load_encoder_tokenizer
from lodestar.packing import batches_of
from lodestar.records import Scored
from lodestar.rewards.rules import Exchange


@dataclass(frozen=True, slots=True)
class Encoded:
    """One prompt and completion as a model reads it."""

    token_ids: tuple[int, ...]
    """Shape [S]."""
    prompt_tokens: int = 0
    """How many of them are the prompt, where the two are tokenized apart; 0 for a pair."""
    types: tuple[int, ...] = ()
    """Shape [S]: segment of each token, for models that have segments."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoringModel:
    """``ScoringModel.load("runs/demo/models/reward")``; ``scores(encoded)`` is [B, K]."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokenizer_hash: str
    digest: str
    """Of the weights."""
    labels: tuple[str, ...]
    """Names of the K scores."""
    context_tokens: int
    vocab_size: int
    device: torch.device
    packed: bool
    pairs: bool
    """It reads text pairs in its tokenizer's own format, and no bare token ids."""
    end_ids: frozenset[int] = frozenset()
    """Ids that end a completion."""
    shares: bool = False
    """Whether it computes equal prompts of a batch once."""

    @staticmethod
    def load(path: str, *, dtype: str = "float32", device: str = "auto") -> ScoringModel:
        """Loads a folder or hub id.

        Raises:
            ModelError: no sequence classifier there, or no usable tokenizer.
        """
        where = resolve_device(device)
        model, packed, pairs = load_classifier(path, dtype=dtype, device=str(where))
        tokenizer = load_encoder_tokenizer(path) if pairs else load_tokenizer(path)
        if not packed and not pairs:
            model.config.pad_token_id = tokenizer.pad_token_id  # padded decoders find the last token by it
        shape: Any = model.config
        labels = tuple(str(shape.id2label[label]) for label in range(shape.num_labels))
        if len(set(labels)) != len(labels):
            raise ModelError(f"{path}: two of its labels have the same name: {', '.join(labels)}")
        context = context_tokens(model.config) or UNLIMITED
        if pairs:  # RoBERTa's positions begin after PAD's; the tokenizer knows what is left
            context = min(context, int(tokenizer.model_max_length))
        return ScoringModel(
            model,
            tokenizer,
            tokenizer_hash(tokenizer),
            weights_digest(tensor_digests(model)),
            labels,
            context,
            int(model.config.get_text_config().vocab_size),
            where,
            packed,
            pairs,
            end_ids(model, tokenizer) if not pairs else frozenset(),
            packed and shares_prompts(model),
        )

    def encode(self, exchanges: Sequence[Exchange]) -> list[Encoded]:
        """Text as this model reads it; nothing is cut to length."""
        if not exchanges:
            return []
        if self.pairs:
            rows = self.tokenizer(
                [unmarked(one.prompt) for one in exchanges], [one.completion for one in exchanges], verbose=False
            )
            types = rows.get("token_type_ids") or [()] * len(exchanges)
            return [Encoded(tuple(ids), types=tuple(of)) for ids, of in zip(rows["input_ids"], types, strict=True)]
        found: dict[int, Scored] = {}
        for cut_off in (False, True):
            chosen = [i for i, one in enumerate(exchanges) if one.cut_off == cut_off]
            written = [self._written(exchanges[i]) for i in chosen]
            prompts, completions = [prompt for prompt, _ in written], [completion for _, completion in written]
            scored = encode_rows(self.tokenizer, prompts, completions, ended=not cut_off)
            found |= dict(zip(chosen, scored, strict=True))
        return [Encoded(found[i].token_ids, found[i].prompt_tokens) for i in range(len(exchanges))]

    def _written(self, one: Exchange) -> tuple[str, str]:
        """Prompt and completion as text for this tokenizer: by its own template where messages are known.

        Raises:
            InvalidArgument: the template refuses the messages.
        """
        if one.messages and self.tokenizer.chat_template and one.completion.strip():
            try:
                return ChatFormat(self.tokenizer).reply(one.messages, one.completion.strip())
            except ValueError as error:
                raise InvalidArgument("messages", f"{error} (the reward model's)") from error
        return one.prompt, Marks(self.tokenizer)(one.completion)

    @torch.inference_mode()
    def scores(self, rows: Sequence[Encoded], *, alone: bool = False, batch_tokens: int = 16_384) -> Tensor:
        """scores_BK in float32 on the CPU; ``alone`` computes each sequence by itself, so that company moves no bit."""
        if self.packed:
            batch = PackedBatch.pack(
                [row.token_ids for row in rows],
                [max(1, row.prompt_tokens) for row in rows],
                device=self.device,
                per_sequence=alone,
                share=self.shares,
            )
            return label_scores(self.model, batch).float().cpu()
        scores_BK = torch.empty(len(rows), len(self.labels))
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].token_ids))
        for group in batches_of(by_length, 0 if alone else batch_tokens, lambda i: len(rows[i].token_ids), padded=True):
            scores_BK[group] = self._padded([rows[i] for i in group])
        return scores_BK

    def _padded(self, rows: Sequence[Encoded]) -> Tensor:
        longest = max(len(row.token_ids) for row in rows)
        pad = self.tokenizer.pad_token_id
        tokens_BS = torch.full((len(rows), longest), int(pad) if isinstance(pad, int) else 0)
        mask_BS = torch.zeros_like(tokens_BS)
        types_BS = torch.zeros_like(tokens_BS)
        for i, row in enumerate(rows):
            tokens_BS[i, : len(row.token_ids)] = torch.tensor(row.token_ids)
            mask_BS[i, : len(row.token_ids)] = 1
            if row.types:
                types_BS[i, : len(row.types)] = torch.tensor(row.types)
        inputs = {"input_ids": tokens_BS, "attention_mask": mask_BS}
        if any(row.types for row in rows):
            inputs["token_type_ids"] = types_BS
        output: Any = self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()})
        return output.logits.float().cpu()  # type: ignore[no-any-return]
