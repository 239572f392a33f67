"""What the process is told when it starts: plain values, from ``lodestar serve feedback`` or a launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from lodestar.config.base import Section


class FeedbackOptions(Section):
    """One process: the page over HTTP and FeedbackService over gRPC."""

    folder: Path
    """For the database unless ``database`` is given, for the first lead's link, and for the state files."""
    database: str | None = None
    """postgresql://user:password@host/name; unset is SQLite in the folder."""
    host: str = "127.0.0.1"
    """Address that both ports bind. Other than loopback needs TLS, or insecure."""
    page_port: int = Field(default=0, ge=0, le=65_535)
    """Of the page; 0 takes a free one."""
    link: str | None = Field(default=None, pattern=r"^https?://[^/\s]+$")
    """What people type: scheme, host and port, where a proxy or a name stands before the page. Unset: host and port."""
    page_tls: Path | None = None
    """Folder with tls.crt and tls.key for the page, signed by an authority that browsers know."""
    proxy: str | None = None
    """Addresses of proxies (commas between) whose X-Forwarded-For is believed."""
    port: int = Field(default=0, ge=0, le=65_535)
    """Of gRPC; 0 takes a free one."""
    caller_port: int | None = Field(default=None, ge=0, le=65_535)
    """See lodestar.config.serve.Listening, as for what follows."""
    health_port: int | None = Field(default=None, ge=0, le=65_535)
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    replica: int = Field(default=0, ge=0)
    tls: Path | None = None
    tokens: Path | None = None
    insecure: bool = False
    reflection: bool | None = None
    drain_seconds: float = Field(default=20.0, ge=0)
    lead: str | None = "lead"
    """Name of the lead who is invited when nobody is there yet; the link is in lead.link in the folder."""

    @model_validator(mode="after")
    def _tls_and_link_agree(self) -> Self:
        if self.page_tls is not None and self.link is not None and not self.link.startswith("https://"):
            raise ValueError("link must begin with https:// when page_tls is given")
        return self
