"""``lodestar serve``: one service in this process."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lodestar.config import parse_overrides
from lodestar.config.serve import TASK, LearnerTask, RewardTask, RolloutTask, Task
from lodestar.crew.port import service_main
from lodestar.errors import ConfigError, DataError
from lodestar.files import read_json
from lodestar.queue.address import redacted

TOLD_SECONDS = 120.0
ARTIFACTS = {"policy": "model", "reference": "model", "reward": "reward_model"}


def serve(
    role: str,
    what: str,
    options: Sequence[str],
    *,
    listening: Mapping[str, Any],
    redis: str | None,
    digest: str | None,
    device: str,
    dtype: str,
    best_of: int | None = None,
    rewards: Sequence[str] = (),
) -> int:
    """Runs the service until it ends; the exit code.

    Raises:
        ConfigError: ``best_of`` or ``rewards`` of another role, one without the other, or an option out of range.
    """
    check_best_of(role, best_of, rewards)
    if role == "task":
        if options:
            raise ConfigError(options[0], "the task's file has its options; they cannot stand here")
        task = _from_file(Path(what), listening, redis, digest)
        return service_main(task.role)(task)
    with tempfile.TemporaryDirectory(prefix="lodestar-") as folder:
        tree: dict[str, Any] = {
            "role": role,
            "run": role,
            "folder": folder,
            "model": served_model(what, ARTIFACTS[role]),
            "device": device,
            "dtype": dtype,
            "section": parse_overrides(options) | ({} if best_of is None else {"best_of": best_of}),
            "endpoints": {"reward": tuple(rewards)},
            "listening": listening,
        }
        return service_main(role)(_valid(tree))


def check_best_of(role: str, best_of: int | None, rewards: Sequence[str]) -> None:
    """Raises ConfigError for --best-of and --reward where they mean nothing."""
    for option, given in (("--best-of", best_of is not None), ("--reward", bool(rewards))):
        if given and role != "policy":
            raise ConfigError(option, f"is a policy server's, and this is a {role}")
    if rewards and (best_of is None or best_of < 2):
        raise ConfigError("--reward", "chooses among samples: say of how many, as in --best-of 8")


def served_model(what: str, kind: str) -> str:
    """What a run's folder, a model's folder or a hub id names: of a run, the newest model of the kind.

    Raises:
        ModelError: a run that has none yet.
    """
    from lodestar.errors import ModelError
    from lodestar.recipe.folder import CONFIG, RunFolder

    root = Path(what)
    if not (root / CONFIG).exists() or (root / "config.json").exists():
        return what
    found = RunFolder.open(root).newest(kind)
    if found is None:
        raise ModelError(
            f"{what}: this run has no {kind.replace('_', ' ')} yet; lodestar run … --resume goes on with it"
        )
    return str(found)


def work(path: Path, *, redis: str | None, digest: str | None) -> int:
    """Runs the stage that a file says; the exit code."""
    from lodestar.crew.work import stage

    argument = told(path, digest)
    if redis:
        argument["endpoints"]["redis"] = redis
    return stage(argument)


def told(path: Path, digest: str | None = None, patience: float = TOLD_SECONDS) -> dict[str, Any]:
    """A file's task, once it is the one of this digest: a mounted ConfigMap may be old for a moment.

    Raises:
        DataError: it is not there, or another one after ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    while digest and (not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest):
        if time.monotonic() > deadline:
            raise DataError(path, f"is not the task {digest[:12]} that this process was started for")
        time.sleep(0.2)
    if not path.exists():
        raise DataError(path, "no such file; on Kubernetes the conductor writes it")
    return dict(read_json(path))


def _from_file(
    path: Path, listening: Mapping[str, Any], redis: str | None, digest: str | None
) -> RolloutTask | LearnerTask | Any:
    tree = told(path, digest)
    tree["listening"] = {**tree.get("listening", {}), **{key: value for key, value in listening.items() if value}}
    if redis:
        tree["endpoints"] = {**tree.get("endpoints", {}), "redis": redis}
    try:
        return TASK.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(path, f"is no task of a service: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _valid(tree: Mapping[str, Any]) -> Task | RewardTask:
    try:
        return TASK.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        _, *place = map(str, first["loc"])  # the role stands first
        if not place or place == ["section"]:  # of several options together
            raise ConfigError("--best-of", str(first["msg"]).removeprefix("Value error, ")) from None
        key = (
            "--" + place[-1].replace("_", "-") if place[0] == "listening" else ".".join(place).removeprefix("section.")
        )
        raise ConfigError(key, f"{first['msg']} (got {redacted(repr(first['input']))})") from None
