"""What is looked at before the first stage of a run: its models without their weights, and its Redis.

Both would end the run later, after stages that cost hours. The conductor imports no torch, so a process of its own
looks at the models (``python -m lodestar.crew.before``); their weights are not read (lodestar.model.preflight).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodestar.config import RunConfig
from lodestar.errors import LodestarError, ModelError
from lodestar.recipe.plan import Plan, Step

if TYPE_CHECKING:
    from lodestar.model.preflight import Preflight


def asked(run: RunConfig, plan: Plan) -> dict[str, Any] | None:
    """The arguments of lodestar.model.preflight.preflight as plain data; None where no model lies in a local folder.

    A model made of ``model.architecture`` is known by the plan, one of a hub only when it has been fetched. Rows are
    not among them: ``data.max_tokens`` is what they may have, and what they do have is counted before training.
    """
    policy = run.model.path if _is_here(run.model.path) else None
    scorers = dict(_scorers(run, plan))
    if policy is None and not scorers:
        return None
    data = plan.last("data")
    return {
        "policy": policy,
        "scorers": scorers,
        "dtype": run.model.dtype,
        "prompt_tokens": getattr(data.stage, "max_prompt_tokens", None) if data else None,
        "response_tokens": plan.response_tokens or None,
        "dialogues": data is not None and getattr(data.stage, "source", "") != "synthetic",
        "makes_scalar": any(map(_makes_scalar, plan.steps)),
        "lora": policy is not None and run.model.lora is not None,
    }


def looked_at(run: RunConfig, plan: Plan) -> Preflight | None:
    """What a run's models will do and what they refuse, in this process, which loads torch; None: see asked."""
    arguments = asked(run, plan)
    if arguments is None:
        return None
    from lodestar.model.preflight import preflight

    return preflight(arguments.pop("policy"), arguments.pop("scorers"), **arguments)


def refuse_models(run: RunConfig, plan: Plan) -> None:
    """Looks at the models in a process of its own.

    Raises:
        ModelError: what they will not do, all of it in a sentence.
    """
    arguments = asked(run, plan)
    if arguments is None:
        return
    command = [sys.executable, "-P", "-m", "lodestar.crew.before"]
    done = subprocess.run(command, input=json.dumps(arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "nothing was said").splitlines()[-1]
        raise LodestarError(f"the look at the run's models ended with exit code {done.returncode}: {said}")
    if refusals := json.loads(done.stdout):
        raise ModelError(in_words(refusals))


def refuse_queue(run: RunConfig, steps: Iterable[Step], tls: Path | None = None) -> None:
    """Asks the Redis of ``services.queue.url`` whether it can hold the queue of steps that roll out.

    Raises:
        QueueUnavailable, ConfigError: see lodestar.queue.redis.reach.
    """
    queue = run.services.queue
    if queue.url is not None and any(step.stage.rolls_out for step in steps):
        from lodestar.queue.redis.reach import reach

        reach(queue.url, run.name, password=queue.password(), tls=tls)


def in_words(refusals: Sequence[Mapping[str, Any]]) -> str:
    """Refused findings as one sentence."""
    said = "; ".join(f"{one['model']}, {one['aspect']}: {one['says']}" for one in refusals)
    return f"the run would end at its models: {said}"


def _scorers(run: RunConfig, plan: Plan) -> Iterator[tuple[str, str]]:
    """Name → folder of reward models that are there already."""
    for source in run.services.reward.sources:
        for number, path in enumerate(source.paths, start=1):
            if _is_here(path):
                yield (source.name if len(source.paths) == 1 else f"{source.name}-{number}"), path
    for step in plan.steps:
        for option in ("path", "start"):
            folder = getattr(step.stage, option, None)
            if "reward_model" in step.makes.values() and isinstance(folder, str) and _is_here(folder):
                yield f"{step.name}.{option}", folder
    if _is_here(run.given.get("reward_model")):
        yield "given.reward_model", run.given["reward_model"]


def _makes_scalar(step: Step) -> bool:
    """Whether a stage puts a scalar head on a language model."""
    trains = "reward_model" in step.makes.values() and not any(getattr(step.stage, o, None) for o in ("path", "start"))
    return trains or getattr(getattr(step.stage, "critic", None), "init", None) == "policy"


def _is_here(path: str | None) -> bool:
    return path is not None and Path(path).is_dir()


def _main() -> None:
    from lodestar.model.preflight import preflight

    arguments = json.load(sys.stdin)
    found = preflight(arguments.pop("policy"), arguments.pop("scorers"), **arguments)
    print(json.dumps([asdict(one) for one in found.refusals]))


if __name__ == "__main__":
    _main()
