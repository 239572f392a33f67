"""How people are asked, as a run's configuration says it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lodestar.config.base import Section

Form = Literal["pair", "rating", "ranking", "aspects"]
"""Of lodestar.feedback.campaign, those that judge replies."""


class PeopleOptions(Section):
    """``people: {overlap: 2}``: a campaign at a page of the run's own, or at the feedback service of ``address``."""

    address: str | None = Field(default=None, pattern=r"^\S+:\S+$")
    """Of a FeedbackService (gRPC) that runs already, host:port. Unset: the run starts one and keeps what people said in
    its folder (services.feedback); on Kubernetes it is that of the component feedback."""
    form: Form = "pair"
    """What is asked. pair: which of two replies is better; the others ask about all of a prompt's replies at once."""
    overlap: int = Field(default=1, ge=1, le=100)
    """People who answer each question; each answer is a row of its own."""
    instructions: str = Field(default="", max_length=65_536)
    """Markdown, shown beside every question."""
    gold: str | None = None
    """File of comparisons whose answers are known (rows of lodestar data check, one choice each): mixed in unseen, to
    tell how well each person judges. They are no feedback."""
    gold_share: float = Field(default=0.1, gt=0, le=0.5)
    """Of a person's questions, while gold ones are left that they have not seen."""
    practice: str | None = None
    """File of such comparisons that everybody answers first, and is then told the answer; a row's flags say why."""
    tls: str | None = None
    """Folder with the service's ca.crt and, where it wants a certificate, our tls.crt and tls.key."""
    token_file: str | None = None
    """File that holds the bearer token for a service that wants one; needs tls."""

    @model_validator(mode="after")
    def _a_token_is_not_sent_in_plaintext(self) -> Self:
        if self.token_file is not None and self.tls is None:
            raise ValueError("token_file needs tls: a token would travel in plaintext")
        return self

    @model_validator(mode="after")
    def _what_is_known_is_a_pair(self) -> Self:
        if self.form != "pair" and (self.gold or self.practice):
            raise ValueError("gold and practice are comparisons, and go with form: pair alone")
        return self

    @model_validator(mode="after")
    def _the_runs_own_page_needs_no_credentials(self) -> Self:
        if self.address is None and (self.tls or self.token_file):
            raise ValueError("tls and token_file are for the service of address; the run's own takes the run's")
        return self
