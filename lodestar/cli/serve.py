"""``lodestar serve``: one service in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lodestar.config import Endpoints, ServeOptions, load_config
from lodestar.errors import ConfigError
from lodestar.local.jobs import service_main
from lodestar.queue.address import redacted


def serve(
    role: str,
    config: Path,
    overrides: Sequence[str],
    *,
    run_dir: Path | None,
    endpoints: Mapping[str, Any],
    **options: Any,
) -> int:
    """Runs the service until it ends; the exit code."""
    loaded = load_config(config, overrides)
    redis = endpoints["redis"] or loaded.queue.url
    try:
        told = ServeOptions(
            config=loaded,
            run_dir=run_dir or Path(loaded.runs_dir) / loaded.name,
            endpoints=Endpoints.model_validate({**endpoints, "redis": redis}),
            **options,
        )
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(flag, f"{first['msg']} (got {redacted(repr(first['input']))})") from None
    return service_main(role)(told)
