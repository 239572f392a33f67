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
from lodestar.config.serve import TASK, LearnerTask, RolloutTask
from lodestar.crew.port import serve_task
from lodestar.errors import ConfigError, DataError
from lodestar.files import read_json
from lodestar.queue.address import redacted
from lodestar.recipe import named
from lodestar.recipe.stage import Kind

TOLD_SECONDS = 120.0
ARTIFACTS: dict[str, Kind] = {"policy": "model", "reference": "model", "reward": "reward_model", "training": "model"}


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
    training: str | None = None,
) -> int:
    """Runs the service until it ends; the exit code.

    Raises:
        ConfigError: ``best_of``, ``rewards`` or ``training`` of another role, one without the other, or an option out
            of range.
    """
    check_best_of(role, best_of, rewards)
    if training is not None and role != "gateway":
        raise ConfigError("--training", f"is a gateway's, and this is a {role}")
    if training is not None and "=" in what:  # no policy servers: the first option stands in their place
        what, options = "", [what, *options]
    if role == "task":
        if options:
            raise ConfigError(options[0], "the task's file has its options; they cannot stand here")
        task = _from_file(Path(what), listening, redis, digest)
        return serve_task(task)
    if role == "feedback":
        return serve_task(_people(Path(what), options, listening))
    with tempfile.TemporaryDirectory(prefix="lodestar-") as folder:
        tree: dict[str, Any] = {
            "role": role,
            "run": role,
            "folder": folder,
            **_what(role, what, rewards, training),
            "device": device,
            "dtype": dtype,
            "section": parse_overrides(options) | ({} if best_of is None else {"best_of": best_of}),
            "listening": listening,
        }
        return serve_task(_valid(tree))


def _what(role: str, what: str, rewards: Sequence[str], training: str | None) -> dict[str, Any]:
    if role == "gateway":
        policy = [address.strip() for address in what.split(",") if address.strip()]
        return {"endpoints": {"policy": policy, "training": training}}
    return {"endpoints": {"reward": tuple(rewards)}, "model": named.model(what, ARTIFACTS[role])}


def check_best_of(role: str, best_of: int | None, rewards: Sequence[str]) -> None:
    """Raises ConfigError for --best-of and --reward where they mean nothing."""
    for option, given in (("--best-of", best_of is not None), ("--reward", bool(rewards))):
        if given and role != "policy":
            raise ConfigError(option, f"is a policy server's, and this is a {role}")
    if rewards and (best_of is None or best_of < 2):
        raise ConfigError("--reward", "chooses among samples: say of how many, as in --best-of 8")


def _people(folder: Path, options: Sequence[str], listening: Mapping[str, Any]) -> Any:
    """The task of a page whose data lie in a folder, and stay there."""
    from lodestar.recipe.folder import people_of

    folder = people_of(folder)
    section = parse_overrides(options)
    return _valid(
        {"role": "feedback", "run": folder.name, "folder": folder, "section": section, "listening": listening}
    )


def serve_model(what: str, options: Sequence[str], *, listening: Mapping[str, Any], device: str, dtype: str) -> int:
    """A policy server in a process of its own and the gateway in this one; options are the policy server's, or
    ``gateway.…``. Returns the exit code."""
    from lodestar.local.serving import serve_with_gateway

    model = named.model(what)
    if not Path(model).exists() and "/" not in model:
        from lodestar.cli.commands.arguments import Served

        raise ConfigError(what, f"is no role ({', '.join(Served)}), and no run or model folder is there")
    sections = parse_overrides(options)
    ours = {"name": Path(what).resolve().name if Path(what).exists() else what, **sections.pop("gateway", {})}
    with tempfile.TemporaryDirectory(prefix="lodestar-") as folder:
        shared = {"folder": folder, "device": device, "dtype": dtype}
        policy = _valid({"role": "policy", "run": "served", "model": model, "section": sections, **shared})
        # The policy server is this machine's alone; what other machines reach is the gateway.
        reached = {**listening, "http_tls": listening["http_tls"] or listening["tls"], "tls": None, "caller_port": None}
        endpoints = {"policy": ["127.0.0.1:0"]}
        tree = {"role": "gateway", "run": "served", "section": ours, "listening": reached, "endpoints": endpoints}
        return serve_with_gateway(policy, _valid({**tree, **shared}))


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


def _valid(tree: Mapping[str, Any]) -> Any:
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
        raise ConfigError(
            key, f"{first['msg'].removeprefix('Value error, ')} (got {redacted(repr(first['input']))})"
        ) from None
