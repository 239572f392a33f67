"""How people and judges are asked, as a run's configuration says it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lodestar.config.base import Section
from lodestar.constitution import Aspect
from lodestar.llm.options import ReachOptions

QUESTION = "Which of the two replies is the better answer?"
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


class JudgeOptions(ReachOptions):
    """``judge: {}``: the run's newest reward model judges; ``judge: {url: …, name: …}``: a language model elsewhere."""

    model: str | None = None
    """Folder or hub id of a language model, which the run serves; of this run's models one is named by use.judge."""
    reward: str | None = None
    """Folder or hub id of a reward model, which the run serves: labels are σ(difference of scores)."""
    heads: dict[str, float] | Literal["ensemble"] | None = None
    """Of a reward model with several labels: the weight of each by its name, or ensemble."""
    labels: Literal["soft", "choice"] = "soft"
    """soft: the judge's probability that the first is better; choice: 1 or 0 by that, 0.5 where it is even."""
    question: str = Field(default=QUESTION, min_length=1, max_length=4096)
    """What a language model is asked, after prompt and replies."""
    aspect: Aspect | None = None
    """Ask by principles of this part of the constitution instead, one drawn for each question."""
    constitution: str | None = None
    """File of principles (lodestar/constitution.yaml); unset: the one that ships."""
    max_tokens: int = Field(default=8, ge=1)
    """Of a language model's answer, which is A or B."""
    logprobs: bool = True
    """Read how sure a language model is from the log-probs of A and B; false: for endpoints that give none."""
    shared: int = Field(default=100, ge=0)
    """Pairs that people have judged and no stage trains on, on which the judge is held against them."""

    @property
    def scores(self) -> bool:
        """Whether a reward model judges, unless use.judge names a language model."""
        return not self.is_elsewhere and self.model is None

    @property
    def has_a_folder(self) -> bool:
        """Whether a folder or hub id is named."""
        return self.model is not None or self.reward is not None

    @model_validator(mode="after")
    def _is_one_judge(self) -> Self:
        named = [key for key in ("model", "address", "url", "reward") if getattr(self, key) is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are {len(named)} judges: set one of them")
        if self.heads is not None and not self.scores:
            raise ValueError("heads are a reward model's; a language model has none")
        if self.constitution is not None and self.aspect is None:
            raise ValueError("constitution goes with aspect: harmless or helpful, whose principles judge")
        if self.aspect is not None and self.question != QUESTION:
            raise ValueError("question and aspect both say what is asked: set one of them")
        return self
