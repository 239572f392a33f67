"""The KV cache as the scheduler and the runner see it: slabs on a CPU, pages on a GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Tokens

from lodestar.engine.blocks import BlockManager
from lodestar.engine.sequence import Plan, Sequence
from lodestar.model.attention import AttentionContext
from lodestar.model.kept import CacheShape


class KVCache(ABC):
    """Keys and values of the running sequences, counted in blocks, and prefixes that outlive their sequence."""

    shape: CacheShape
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
    def close(self, sequence: Sequence) -> None:
        """Take the sequence's room back; nobody sees what was in it, NaN least of all."""

    @abstractmethod
    def order(self, sequences: list[Sequence]) -> list[Sequence]:
        """The sequences in the order in which the cache likes to decode them."""

    @abstractmethod
    def context(self, plan: Plan) -> AttentionContext:
        """Attention over one step's rows: the decode rows in order, then each chunk's."""

    def forget_prefixes(self) -> None:
        """The weights changed."""
        self.blocks.forget()
