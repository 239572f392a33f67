"""The KV cache as the scheduler and the runner see it: slabs on a CPU, pages on a GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import Any

import torch

from lodestar.engine.blocks import BlockManager
from lodestar.engine.sequence import Plan, Sequence
from lodestar.errors import ModelError
from lodestar.model.attention import AttentionContext


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Size of one token's keys and values: ``CacheShape(layers=4, kv_heads=4, head_dim=64, dtype=torch.float32)``."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    @classmethod
    def of(cls, model: Any) -> CacheShape:
        """Read from a model's config.

        Raises:
            ModelError: layers that keep something other than keys and values of one size.
        """
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        unknown = sorted(kinds - {"full_attention", "sliding_attention"})
        if unknown:
            raise ModelError(
                f"{type(model).__name__} has layers of kind {', '.join(unknown)}, which the KV cache cannot hold"
            )
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype=next(model.parameters()).dtype,
        )


class KVCache(ABC):
    """Keys and values of the running sequences, counted in blocks, and prefixes that outlive their sequence."""

    blocks: BlockManager
    block_tokens: int
    capacity: int
    """Tokens one sequence may have."""

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_tokens)

    @abstractmethod
    def has_room(self, tokens: int, spare_blocks: int = 0) -> bool:
        """Whether :meth:`open` would succeed and leave ``spare_blocks``."""

    @abstractmethod
    def open(self, sequence: Sequence, reserve: int, prefixes: Tokens[bytes]) -> int:
        """Give the sequence room for ``reserve`` tokens; returns how many leading tokens a known prefix filled."""

    @abstractmethod
    def fork(self, parent: Sequence, child: Sequence, tokens: int) -> None:
        """Give an open ``child`` the first ``tokens`` tokens of its parent."""

    @abstractmethod
    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Make room for so many tokens in all; False when the blocks are used up."""

    @abstractmethod
    def remember(self, sequence: Sequence, prefixes: Tokens[bytes]) -> None:
        """Keep the first blocks of a computed sequence, one per prefix, for others to share."""

    @abstractmethod
    def close(self, sequence: Sequence, *, poisoned: bool = False) -> None:
        """Take the sequence's room back; ``poisoned`` when it may hold NaN."""

    @abstractmethod
    def order(self, sequences: list[Sequence]) -> list[Sequence]:
        """The sequences in the order in which the cache likes to decode them."""

    @abstractmethod
    def context(self, plan: Plan) -> AttentionContext:
        """Attention over one step's rows: the decode rows in order, then each chunk's."""

    def forget_prefixes(self) -> None:
        """The weights changed."""
        self.blocks.forget()
