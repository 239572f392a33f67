"""Where a language model is and how it may be asked, as a run's configuration says it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from lodestar.config.base import Section
from lodestar.errors import ConfigError

KEY = "OPENAI_API_KEY"
"""Variable that SDKs of OpenAI's API read; ours too, for https alone."""
MANNER = frozenset(
    {
        "tls",
        "token_file",
        "in_flight",
        "requests_per_minute",
        "timeout_seconds",
        "retries",
        "input_price",
        "output_price",
    }
)
"""Options that change no answer."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ReachOptions(Section):
    """A language model outside the run: a policy service of ours, or an endpoint that speaks OpenAI's API."""

    address: str | None = Field(default=None, pattern=r"^[^\s/]+:\d+$")
    """Of a PolicyService (gRPC) that runs already, host:port: ``lodestar serve policy FOLDER``."""
    url: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """Of an endpoint with OpenAI's API, up to /v1; needs the extra ``openai``."""
    name: str | None = Field(default=None, min_length=1)
    """url: the model's id there."""
    tls: str | None = None
    """address: folder with the service's ca.crt and, where it wants a certificate, our tls.crt and tls.key."""
    token_file: str | None = None
    """File that holds the bearer token or API key. Unset, with an https url: the variable OPENAI_API_KEY, if any."""
    form: Literal["chat", "text"] = "chat"
    """chat: for the model's chat template; text: plain text that a model without one goes on with."""
    in_flight: int = Field(default=16, ge=1)
    """Requests at once."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """At most; unset: as many as in_flight gives."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Of each request."""
    retries: int = Field(default=5, ge=0)
    """url: after an error that may pass (429, 5xx, no connection, no answer in time), with growing waits."""
    input_price: float = Field(default=0.0, ge=0)
    """Per million tokens of what is asked, in any currency; for the figures."""
    output_price: float = Field(default=0.0, ge=0)
    """Per million tokens of what is answered."""

    @model_validator(mode="after")
    def _is_one_place(self) -> Self:
        if self.address is not None and self.url is not None:
            raise ValueError("address and url are two places: set one of them")
        if (self.url is None) != (self.name is None):
            raise ValueError("name is the model's id at url: set both")
        if self.tls is not None and self.address is None:
            raise ValueError("tls goes with address; an endpoint's certificate is checked by https itself")
        return self

    @model_validator(mode="after")
    def _a_token_is_not_sent_in_plaintext(self) -> Self:
        if self.token_file is None:
            return self
        if self.address is not None and self.tls is None:
            raise ValueError("token_file needs tls: a token would travel in plaintext")
        if self.url is not None and not self.may_carry_a_token:
            raise ValueError("token_file needs an https url: a token would travel in plaintext")
        if self.address is None and self.url is None:
            raise ValueError("token_file goes with address or url; the run's own servers take the run's")
        return self

    @property
    def may_carry_a_token(self) -> bool:
        """Whether nobody on the way to the endpoint reads what is sent."""
        parts = urlsplit(self.url or "")
        return parts.scheme == "https" or parts.hostname in LOOPBACK

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is a server that the run does not start."""
        return self.address is not None or self.url is not None

    def token(self, key: str) -> str | None:
        """What opens the door there; ``key`` is these options' own, for the error.

        Raises:
            ConfigError: the file cannot be read, or is empty.
        """
        if self.token_file is None:
            return (os.environ.get(KEY) or None) if (self.url or "").startswith("https") else None
        try:
            token = Path(self.token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{key}.token_file", f"cannot be read: {error}") from error
        if not token:
            raise ConfigError(f"{key}.token_file", f"{self.token_file} is empty")
        return token
