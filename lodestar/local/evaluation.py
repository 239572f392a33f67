"""Before and after: samples of the running policy servers on held-out prompts, scored, judged and kept.

Prompts go out as text with a seed of their own each, so that a repeated evaluation of the same weights asks for the
same samples. All calls are ordinary callers' traffic over gRPC: many in flight, retried while a server restarts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from lodestar.client import AsyncPolicyClient, AsyncRewardClient
from lodestar.config import RunConfig
from lodestar.data.files import DataFiles, read_prompts, write_jsonl
from lodestar.errors import Unavailable
from lodestar.evaluation import WinRate, best_of_n, win_rate
from lodestar.layout import RunFolder
from lodestar.local.board import Board, StageRow
from lodestar.local.fleet import Fleet
from lodestar.records import FinishReason, Prompt, SamplingParams, ScoreItem

T = TypeVar("T")
PATIENCE_SECONDS = 120.0
"""How long a call is tried again while its server is away."""
CALL_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One judged response: a half of a line of samples.jsonl."""

    text: str
    tokens: int
    finish_reason: str
    step: int
    """PPO step of the weights that wrote it."""
    score: float
    """The reward model's."""
    gold: float | None = None
    """The synthetic world's hidden reward."""


class Evaluator:
    """Asks the fleet's policy and reward servers; a context manager that owns an event loop on a thread."""

    def __init__(self, config: RunConfig, folder: RunFolder, fleet: Fleet, board: Board) -> None:
        self._config = config
        self._folder = folder
        self._board = board
        self._addresses = fleet.addresses("policy"), fleet.addresses("reward")
        self._prompts = read_prompts(DataFiles.of(folder).evaluation_prompts)[: config.evaluation.prompts]
        self.watched: list[dict[str, Any]] = []
        """Running win rates taken so far."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="evaluator", daemon=True)

    def __enter__(self) -> Evaluator:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts :meth:`baseline`, :meth:`final` or :meth:`watch` on the evaluator's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def baseline(self) -> dict[str, Any]:
        """Samples the SFT model: one reply per prompt as "before", and best-of-n among others of its replies."""
        row = self._board.stage("baseline")
        most = max(self._config.evaluation.best_of, default=0)
        replies = await self._replies(self._prompts, "before", 1 + most, _showing(row))
        before = [several[0] for several in replies]
        write_jsonl(
            self._folder.samples,
            ({"id": p.id, "prompt": p.text, "before": asdict(b)} for p, b in zip(self._prompts, before, strict=True)),
        )
        scores = [[reply.score for reply in several[1:]] for several in replies]
        judged = [[self._judgement(reply) for reply in several[1:]] for several in replies]
        chosen = {n: best_of_n(scores, judged, n) for n in self._config.evaluation.best_of}
        best_scores = {n: best_of_n(scores, scores, n) for n in self._config.evaluation.best_of}
        baseline = [self._judgement(reply) for reply in before]
        row.detail = f"{len(before)} prompts, {len(before) * (1 + most)} samples"
        return {
            "best_of_n": {str(n): asdict(win_rate(best, baseline)) for n, best in chosen.items()},
            "best_of_n_score": {str(n): _mean(best) for n, best in best_scores.items()},
            "reward_before": _mean([reply.score for reply in before]),
        }

    async def final(self, step: int) -> dict[str, Any]:
        """Samples the trained policy, that of PPO step ``step``, on the same prompts and completes samples.jsonl."""
        row = self._board.stage("evaluation")
        replies = await self._replies(self._prompts, "after", 1, _showing(row))
        after = [replace(one, step=step) for (one,) in replies]  # a policy loaded from its folder calls itself step 0
        rows = self._samples()
        write_jsonl(self._folder.samples, (s | {"after": asdict(a)} for s, a in zip(rows, after, strict=True)))
        rate = self._against_baseline(after, rows)
        row.detail = f"win rate {rate.value:.1%}"
        self._board.win_rate = {"step": step, **asdict(rate)}
        return {"win_rate": asdict(rate), "reward_after": _mean([reply.score for reply in after])}

    async def watch(self) -> None:
        """Takes a running win rate every ``watch_every`` steps; ends when it is cancelled."""
        every, taken = self._config.evaluation.watch_every, 0
        rows = self._samples()[: self._config.evaluation.watch_prompts]
        while every:
            await asyncio.sleep(0.2)
            status = self._board.status
            if status is None or status.step // every <= taken // every:
                continue
            taken = status.step
            replies = await self._replies(self._prompts[: len(rows)], f"watch-{taken}", 1, lambda *_: None)
            # The policy may move on while we ask: only replies of one step are one policy's, so the commonest is taken.
            steps = [one.step for (one,) in replies]
            step = max(set(steps), key=steps.count)
            pairs = [(one, row) for (one,), row in zip(replies, rows, strict=True) if one.step == step]
            rate = self._against_baseline([one for one, _ in pairs], [row for _, row in pairs])
            self._board.win_rate = {"step": step, **asdict(rate)}
            self.watched.append(self._board.win_rate)

    def _samples(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._folder.samples.read_text(encoding="utf-8").split("\n") if line]

    def _against_baseline(self, replies: Sequence[Reply], rows: Sequence[dict[str, Any]]) -> WinRate:
        before = [Reply(**row["before"]) for row in rows]
        return win_rate([self._judgement(reply) for reply in replies], [self._judgement(reply) for reply in before])

    async def _replies(
        self, prompts: Sequence[Prompt], purpose: str, n: int, progress: Callable[[int, int], None]
    ) -> list[list[Reply]]:
        """n judged replies of every prompt."""
        policies, rewards = self._addresses
        admitted = asyncio.Semaphore(max(1, 2 * self._config.policy.max_sequences // n))
        finished = 0
        async with (
            AsyncPolicyClient(policies, timeout=CALL_SECONDS) as policy,
            AsyncRewardClient(rewards, timeout=CALL_SECONDS) as reward,
        ):

            async def reply_to(prompt: Prompt) -> list[Reply]:
                nonlocal finished
                sampling = SamplingParams(
                    max_tokens=self._config.ppo.max_tokens,
                    n=n,
                    temperature=self._config.ppo.temperature,
                    seed=_seed(self._config.seed, purpose, prompt.id),
                )
                async with admitted:
                    made = await _patiently(lambda: policy.generate(prompt.text, sampling))
                items = [
                    ScoreItem(prompt.text, one.text, cut_off=one.finish_reason is not FinishReason.EOS)
                    for one in made.completions
                ]
                scores = (await _patiently(lambda: reward.score(items))).scores
                finished += 1
                progress(finished, len(prompts))
                return [
                    Reply(
                        one.text,
                        len(one.token_ids),
                        str(one.finish_reason),
                        made.model.version.step,
                        score.score,
                        self._gold(prompt.text, one.text),
                    )
                    for one, score in zip(made.completions, scores, strict=True)
                ]

            tasks = [asyncio.create_task(reply_to(prompt)) for prompt in prompts]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

    def _gold(self, prompt: str, reply: str) -> float | None:
        if self._config.data.kind != "synthetic":
            return None
        from lodestar.data.world import gold_reward

        return gold_reward(prompt, reply)

    def _judgement(self, reply: Reply) -> float:
        if self._config.evaluation.judge == "gold" and reply.gold is not None:
            return reply.gold
        return reply.score


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Makes a call again while its server is away: it is being restarted, or swaps weights."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await call()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _showing(row: StageRow) -> Callable[[int, int], None]:
    """Shows progress on a stage's row."""

    def progress(done: int, total: int) -> None:
        row.fraction = done / total

    return progress


def _seed(run_seed: int, purpose: str, prompt_id: str) -> int:
    """Below 2⁶³, and unlike any other prompt's or purpose's."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{purpose}/{prompt_id}".encode()).digest()[:8]) >> 1
