"""Running win rates: is the policy already better than the model it started from?"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lodestar.asking import Asking, Judge, Reply, admitted
from lodestar.crew.work import rank_here
from lodestar.data.files import read_prompts
from lodestar.errors import LodestarError
from lodestar.evaluation import win_rate
from lodestar.files import append, json_line, read_jsonl, write_jsonl
from lodestar.recipe.stage import Bench
from lodestar.records import Prompt

if TYPE_CHECKING:
    from lodestar.stages.ppo import Ppo, RunningConfig

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.5


@contextlib.contextmanager
def running_win_rate(bench: Bench, options: RunningConfig, ppo: Ppo) -> Iterator[None]:
    """Takes the start model's replies now, and win rates against them on a thread of its own inside.

    They go to ``figures/watched.jsonl``, one line each: ``{"step", "value", "low", "high", "n"}``.
    """
    rows = bench.take("prompts") / "evaluation.jsonl"
    if not options.every or not rows.exists() or rank_here():
        yield
        return
    prompts = read_prompts(rows)[: options.prompts]
    asking = Asking(
        bench.servers["policy"],
        bench.servers["reward"],
        ppo.max_tokens,
        ppo.temperature,
        bench.seed,
        bench.listening.tls,
        in_flight=admitted(bench.config.services.policy, picks=False),
    )
    before = _before(bench.unfinished / "before.jsonl", asking, prompts)
    watch = _Watch(asking, prompts, before, bench.make("figures") / "watched.jsonl", options.every)
    thread = threading.Thread(target=watch.run, name="running-win-rate", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.ended.set()
        thread.join(5)


def _before(path: Path, asking: Asking, prompts: Sequence[Prompt]) -> list[Reply]:
    """The start model's replies, from the file when an earlier start has taken them: servers have moved on since."""
    if path.exists():
        return [Reply(**row) for row in read_jsonl(path)]
    replies = [one for (one,) in asyncio.run(asking.replies(prompts, "before"))]
    write_jsonl(path, map(asdict, replies))
    return replies


class _Watch:
    def __init__(
        self, asking: Asking, prompts: Sequence[Prompt], before: Sequence[Reply], file: Path, every: int
    ) -> None:
        self._asking = asking
        self._prompts = prompts
        self._before = before
        self._file = file
        self._every = every
        self.ended = threading.Event()

    def run(self) -> None:
        """Until ended: a win rate whenever ``every`` more steps are served."""
        judge: Judge = "gold" if all(reply.gold is not None for reply in self._before) else "reward"
        taken = max((int(row["step"]) for row in read_jsonl(self._file)), default=0) if self._file.exists() else 0
        while not self.ended.wait(LOOK_SECONDS):
            try:
                step = asyncio.run(self._asking.step())
                if step // self._every > taken // self._every:
                    taken = step
                    self._take(judge, step)
            except LodestarError as error:
                log.info("no running win rate: %s", error)

    def _take(self, judge: Judge, step: int) -> None:
        replies = [one for (one,) in asyncio.run(self._asking.replies(self._prompts, f"watch-{step}"))]
        # The policy may move on while we ask: only replies of one step are one policy's, so the commonest is taken.
        steps = [reply.step for reply in replies]
        commonest = max(set(steps), key=steps.count)
        pairs = [(now, then) for now, then in zip(replies, self._before, strict=True) if now.step == commonest]
        rate = win_rate([now.judged_by(judge) for now, _ in pairs], [then.judged_by(judge) for _, then in pairs])
        append(self._file, json_line({"step": commonest, **asdict(rate)}))
