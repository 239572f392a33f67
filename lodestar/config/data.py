"""Where text, comparisons and models come from."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import Field, model_validator

from lodestar.config.base import Section


class DataConfig(Section):
    """Where the data of a run come from. The data stage turns them into plain JSONL files."""

    source: Literal["synthetic", "hh", "jsonl", "hub"] = "synthetic"
    """synthetic: the generated world; hh: Anthropic HH dialogues; jsonl: files of lodestar.data.schema's rows or of a
    published format that lodestar.data.formats knows; hub: a Hugging Face data set."""
    root: str | None = None
    """Folder of the files (hh, jsonl) or hub id (hub). Not used by synthetic."""
    files: tuple[str, ...] = ()
    """hh, jsonl: files below root; empty means every .jsonl, .json, .csv, .tsv, .parquet, .arrow and .feather there.
    hub: configurations (data_dir) to read."""
    demonstrations: str | None = None
    """jsonl: file of replies to imitate; unset takes those in files, or the preferred completions of the feedback."""
    prompts: str | None = None
    """jsonl: file of prompts for PPO and the evaluation, of any kind; its other columns go to functions as rewards."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column → the file's, where its names are others: {prompt: instruction, chosen: best}."""
    ignore: tuple[str, ...] = ()
    """Columns to leave out, as if they were not in the files."""
    strings: Literal["text", "messages"] = "text"
    """A prompt that is one string. text: taken as it stands; messages: a user's words, for the chat template."""
    all_turns: bool = False
    """Learn every answer of a demonstration's dialogue, each after what came before it; else the last alone."""
    merge_turns: bool = False
    """Join consecutive messages of one speaker, for chat templates that refuse them."""
    fold_system: bool = False
    """Put a system message in front of the next user's words, for chat templates that have no such role."""
    date: str = Field(default="2024-07-26", pattern=r"^\d{4}-\d{2}-\d{2}$")
    """Day that chat templates which write today's date write instead; saved with the model, so that serving agrees.
    The default is the one that Llama 3.1's template falls back on."""
    text: str | None = None
    """File of plain text to pretrain on; unset takes the text of the demonstrations and dialogues."""
    demonstration_rows: int = Field(default=4000, ge=1)
    """synthetic: how many demonstrations to write."""
    comparison_rows: int = Field(default=4000, ge=1)
    """synthetic: how many comparisons the panel of annotators gives."""
    prompt_rows: int = Field(default=2048, ge=1)
    """Prompts kept for PPO; hh, jsonl and hub take them from prompts that no training pair contains."""
    evaluation_rows: int = Field(default=512, ge=1)
    """Prompts kept for evaluation, which no stage trains on."""
    held_out_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of prompts kept apart for held-out loss and accuracy; split by prompt, never by row."""
    shuffle_labels: bool = False
    """Shuffle the comparisons' labels: a control that must teach nothing."""
    max_prompt_tokens: int = Field(default=192, ge=1)
    """PPO and evaluation use prompts of at most this many tokens."""
    max_tokens: int = Field(default=512, ge=2)
    """Longer training rows are left out and counted (the tail of a dialogue cannot be judged without its head)."""
    strict: bool = False
    """Refuse a file with a bad row, or with a column that nothing reads, instead of counting it."""

    @model_validator(mode="after")
    def _root_is_given(self) -> DataConfig:
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError as error:
            raise ValueError(f"data.date {self.date!r} is no day: {error}") from None
        if self.source != "synthetic" and self.root is None:
            raise ValueError(
                f"root must name the {'data set' if self.source == 'hub' else 'folder'} when source is {self.source}"
            )
        return self


class TokenizerConfig(Section):
    """A tokenizer trained on the run's text; used when model.path is unset."""

    kind: Literal["word", "bpe"] = "word"
    """word: one id per word of the synthetic world; bpe: byte-level BPE."""
    vocab_size: int = Field(default=1024, ge=16)
    """Entries at most, special tokens included."""


class ArchitectureConfig(Section):
    """A Llama made from nothing; used when model.path is unset."""

    hidden_size: int = Field(default=96, ge=8)
    """Width of the residual stream."""
    intermediate_size: int = Field(default=256, ge=8)
    """Width of the MLP."""
    layers: int = Field(default=3, ge=1)
    """Transformer blocks."""
    heads: int = Field(default=4, ge=1)
    """Query heads."""
    kv_heads: int = Field(default=4, ge=1)
    """Key/value heads; must divide heads."""
    context_tokens: int = Field(default=256, ge=8)
    """Longest prompt + response."""
    tied: bool = True
    """Share the embedding with the LM head."""


class LoraConfig(Section):
    """Low-rank adapters (PEFT); the saved model is merged."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: int = Field(default=32, ge=1)
    """Scale: the update is multiplied by alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Module names to adapt."""


class ModelConfig(Section):
    """The policy's start model: a Hugging Face model, or a small Llama from nothing."""

    path: str | None = None
    """Local folder or hub id with safetensors; unset makes a Llama of `architecture` and trains it from nothing."""
    architecture: ArchitectureConfig = ArchitectureConfig()
    """Shape of the model made when path is unset."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Tokenizer made when path is unset."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation; master weights are float32 always."""
    device: str = "auto"
    """auto: cuda when there is one, else cpu."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights in SFT, reward training and DPO."""
