"""The model that options name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lodestar.llm.endpoint import Endpoint
from lodestar.llm.options import ReachOptions
from lodestar.llm.policy import PolicyModel
from lodestar.llm.port import LanguageModel


def language_model(options: ReachOptions, key: str, servers: Sequence[str], tls: Path | None) -> LanguageModel:
    """The model that options name; without an address or a url that of the run's own servers.

    Raises:
        ConfigError: its token or SDK cannot be used.
    """
    if options.url is not None:
        return Endpoint(options, key)
    if options.address is not None:
        return PolicyModel(
            [options.address], timeout=options.timeout_seconds, tls=options.tls, token=options.token(key)
        )
    return PolicyModel(servers, timeout=options.timeout_seconds, tls=tls)
