"""Tasks: what the policy can still do of what nobody trained it for, and what training by a reward cost (the alignment
tax, Ouyang et al. 2022, section 4.2), by lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Call, Kind, Stage
from lodestar.stages.evaluate import ancestor

if TYPE_CHECKING:
    from lodestar.harness import Measured

MISSING = "needs lm-evaluation-harness: pip install 'lodestar-rlhf[eval]' (in a checkout: pip install -e '.[eval]')"


class Tasks(Stage):
    """Puts the harness's tasks, or task files of one's own, to both models through the policy servers that serve them
    (lodestar.harness)."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "against": "model",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {"policy": Call("policy", "policy"), "against": Call("policy", "against")}
    optional: ClassVar[frozenset[str]] = frozenset({"against", "tokenizer"})

    names: tuple[str, ...] = Field(min_length=1)
    """Tasks, groups or tags: arc_challenge, hellaswag, …; `lm_eval ls tasks` lists them."""
    include: str | None = None
    """A folder of task files (YAML) beside the harness's own, such as tasks over local data."""
    shots: int | None = Field(default=None, ge=0)
    """Solved questions in front of each; unset: as the task says."""
    limit: int | None = Field(default=None, ge=1)
    """Questions of each task at most, the first; unset takes all."""
    chat: bool = False
    """Put questions as a chat's messages, by the model's template."""

    def tie(self, port: str, plan: Plan, inputs: Mapping[str, tuple[str, ...]]) -> str | None:
        """Compared with the model from which training by a reward began."""
        return ancestor(plan, inputs["policy"][0]) if port == "against" else None

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """The harness is installed, and the folder of task files is there."""
        if importlib.util.find_spec("lm_eval") is None:
            raise ConfigError(f"stages.{step.name}", MISSING)
        if self.include is not None and not Path(self.include).is_dir():
            raise ConfigError(f"stages.{step.name}.include", f"{self.include} is no folder of task files")

    def run(self, bench: Bench) -> None:
        """Writes figures/tasks.json: task → metric → ``after``, and ``before`` and ``change`` where there is a model
        before; and how many contexts were cut."""
        from lodestar.files import write_atomically
        from lodestar.harness import tax

        both = bench.takes("against")
        bench.progress.start(bench.step.name, 0)
        after, cut = self._answers(bench, "policy")
        before = self._answers(bench, "against")[0] if both else {}
        tasks = {name: tax(before.get(name), metrics) for name, metrics in after.items()}
        found: dict[str, Any] = {"tasks": tasks, "cut_contexts": cut}
        if cut:
            bench.progress.warn(
                f"{bench.step.name}: {cut} contexts lost their beginning, which the model has no room for"
            )
        write_atomically(bench.make("figures") / "tasks.json", json.dumps(found, indent=1, allow_nan=False))

    def _answers(self, bench: Bench, port: str) -> tuple[dict[str, dict[str, Measured]], int]:
        """What the servers of a port's model say to every question, and how many contexts were cut."""
        from lodestar.asking import admitted
        from lodestar.harness import ServedPolicy, answers
        from lodestar.model.tokenizers import load_tokenizer

        model = ServedPolicy(
            bench.servers[port],
            load_tokenizer(bench.tokenizer(port)),
            seed=bench.seed_of(bench.step.name),
            tls=bench.listening.tls,
            in_flight=admitted(bench.config.services.policy, picks=port == "policy"),
            progress=bench.progress.advance,
        )
        include = None if self.include is None else Path(self.include)
        said = answers(
            model, self.names, include, shots=self.shots, limit=self.limit, chat=self.chat, seed=bench.seed % 2**32
        )
        return said, model.cut
