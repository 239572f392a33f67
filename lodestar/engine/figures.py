"""The engine's Prometheus metrics."""

from __future__ import annotations

from lodestar import metrics
from lodestar.engine.blocks import BlockManager
from lodestar.engine.scheduler import Scheduler
from lodestar.engine.sequence import Sequence


class Figures:
    """What the metrics say of a scheduler and its blocks."""

    def __init__(self, scheduler: Scheduler, blocks: BlockManager, block_tokens: int) -> None:
        self._scheduler = scheduler
        self._blocks = blocks
        self._block_tokens = block_tokens
        self._hits = self._preemptions = 0
        metrics.KV_TOKENS_CAPACITY.set(blocks.total * block_tokens)

    def show_load(self) -> None:
        """Gauges of this moment."""
        metrics.SEQUENCES_RUNNING.set(len(self._scheduler.running))
        metrics.SEQUENCES_WAITING.set(self._scheduler.waiting)
        metrics.KV_TOKENS_USED.set(self._blocks.held * self._block_tokens)

    def count_step(self, decoded: list[Sequence], now: float) -> None:
        """A step gave a token to ``decoded``, whose times are still those of the tokens before."""
        for sequence in decoded:
            if not sequence.last_token_at:
                metrics.FIRST_TOKEN_SECONDS.observe(now - sequence.request.arrived)
        earlier = [sequence.last_token_at for sequence in decoded if sequence.last_token_at]
        if earlier:  # one observation a step, of whoever waited longest
            metrics.BETWEEN_TOKENS_SECONDS.observe(now - min(earlier))
        metrics.TOKENS_OUT.inc(len(decoded))
        metrics.PREFIX_HIT_TOKENS.inc(self._scheduler.prefix_hit_tokens - self._hits)
        metrics.PREEMPTIONS.inc(self._scheduler.preemptions - self._preemptions)
        self._hits, self._preemptions = self._scheduler.prefix_hit_tokens, self._scheduler.preemptions
