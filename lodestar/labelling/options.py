"""How people are asked, as a run's configuration says it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lodestar.config.base import Section

Form = Literal["pair", "rating", "ranking", "aspects"]
"""Of lodestar.feedback.campaign, those that judge replies."""


class PeopleOptions(Section):
    """``people: {address: "127.0.0.1:50051", overlap: 2}``: a campaign at a feedback service that runs already."""

    address: str = Field(default="127.0.0.1:50051", pattern=r"^\S+:\S+$")
    """Of FeedbackService (gRPC), host:port; the page where people judge says its own."""
    form: Form = "pair"
    """What is asked. pair: which of two replies is better; the others ask about all of a prompt's replies at once."""
    overlap: int = Field(default=1, ge=1, le=100)
    """People who answer each question; each answer is a row of its own."""
    instructions: str = Field(default="", max_length=65_536)
    """Markdown, shown beside every question."""
    tls: str | None = None
    """Folder with the service's ca.crt and, where it wants a certificate, our tls.crt and tls.key."""
    token_file: str | None = None
    """File that holds the bearer token for a service that wants one; needs tls."""

    @model_validator(mode="after")
    def _a_token_is_not_sent_in_plaintext(self) -> Self:
        if self.token_file is not None and self.tls is None:
            raise ValueError("token_file needs tls: a token would travel in plaintext")
        return self
