"""People's answers, from a page where they judge: a campaign of lodestar.feedback.

The campaign's name ends in a digest of all that is asked. Whoever asks the same again, after a kill or anew, finds the
answers that are there already; whoever asks otherwise opens another campaign.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lodestar.errors import ConfigError, DeadlineExceeded, FailedPrecondition, Unavailable
from lodestar.feedback import AsyncFeedbackClient, Campaign, Item, Progress
from lodestar.feedback.client import AGAIN_SECONDS
from lodestar.labelling.known import known_items
from lodestar.labelling.options import PeopleOptions
from lodestar.labelling.port import NONE, Asked, Question
from lodestar.records import Feedback

log = logging.getLogger(__name__)
FIRST_SECONDS = 120.0
"""For a service that has never answered, whose address may be wrong; one that has is waited for without end."""
SAY_SECONDS = 10.0
"""Between two words about how far people are, while they go on."""
MAX_NAME = 64
T = TypeVar("T")


class People:
    """Asks every question at a feedback service and waits until people have answered, over restarts of both."""

    figures = NONE

    def __init__(self, asked: Asked) -> None:
        if asked.people is None:
            raise FailedPrecondition("label by: people needs people: where and how they are asked")
        self._options = asked.people
        self._address = asked.people.address or next(iter(asked.servers.get("feedback", ())), "")
        self._tls = asked.people.tls if asked.people.address else asked.tls
        self._of = asked.of
        self._say = asked.say

    def label(self, questions: Sequence[Question], progress: Callable[[int], object]) -> list[Feedback]:
        """See Labeller; a row for each person's answer.

        Raises:
            ConfigError: the token file cannot be read, or the TLS folder cannot be used.
            DataError: people.gold or people.practice cannot be used.
            Unavailable: the service did not answer when it was first called.
            InvalidArgument: a question cannot be shown, such as one that holds a NUL character.
            FailedPrecondition: the campaign was closed before anybody had answered.
            Unauthenticated, PermissionDenied: the service does not take our certificate or token.
        """
        return asyncio.run(self._label(questions, progress)) if questions else []

    async def _label(self, questions: Sequence[Question], progress: Callable[[int], object]) -> list[Feedback]:
        items = [*items_of(questions), *known_items(self._options)]
        campaign = campaign_of(self._of, self._options, items)
        async with AsyncFeedbackClient(self._address, tls=self._tls, token=_token(self._options)) as people:
            added = await self._insist(lambda: people.add_items(campaign, items), FIRST_SECONDS)
            known = ", which were asked before" if added.known else ""
            self._tell(f"{len(questions)} questions for people{known}; judge at {added.link}")
            await self._judged(people, campaign, items, progress)
            # closed first: what comes later is not taken home, and the page says so to whoever sends it
            ended = await self._insist(lambda: people.close_campaign(campaign.name))
            found = await self._insist(lambda: people.feedback(campaign.name))
        self._tell(str(ended))
        wanted = {(question.prompt, question.replies) for question in questions}
        answers = [row for row in found if (row.prompt, row.completions) in wanted]
        if not answers:
            raise FailedPrecondition(
                f"the campaign {campaign.name} was closed before anybody had answered, and stays so: other "
                "people.instructions, or another name of the run, open a new one"
            )
        return answers

    async def _judged(
        self, people: AsyncFeedbackClient, campaign: Campaign, items: list[Item], progress: Callable[[int], object]
    ) -> None:
        """Waits until all is judged, or somebody closes the campaign."""

        sure = True  # that the items are there: a service may come back from a backup that lacks some

        async def look() -> Progress:
            nonlocal sure
            if not sure:
                await people.add_items(campaign, items)
            sure = False
            seen = await people.progress(campaign.name)
            sure = True
            return seen

        told, said, said_at = 0, 0, float("-inf")
        while True:
            now = await self._insist(look)
            if now.done > told:
                progress(now.done - told)
                told = now.done
            if now.finished:
                return
            if now.done != said and time.monotonic() - said_at >= SAY_SECONDS:
                self._tell(str(now))
                said, said_at = now.done, time.monotonic()
            await asyncio.sleep(AGAIN_SECONDS)

    async def _insist(self, call: Callable[[], Awaitable[T]], seconds: float = float("inf")) -> T:
        """Every call may be repeated (lodestar.feedback.port), and is while the service is away."""
        began, away = time.monotonic(), False
        while True:
            try:
                answer = await call()
            except (Unavailable, DeadlineExceeded) as error:
                where = f"the feedback service at {self._address} does not answer"
                if time.monotonic() - began >= seconds:
                    stage = self._of.partition(".")[2]
                    mend = f"start it and --resume, or mend people.address and --from {stage}"
                    if self._options.address is None:
                        mend = "it is the run's own: its log says why; --resume starts it again"
                    raise Unavailable(f"{where}: {mend} ({error})") from error
                if not away:
                    self._tell(f"{where}; waiting for it ({error})")
                away = True
            else:
                if away:
                    self._tell(f"the feedback service at {self._address} answers again")
                return answer
            await asyncio.sleep(AGAIN_SECONDS)

    def _tell(self, text: str) -> None:
        log.info("%s", text)
        self._say(text)


def items_of(questions: Sequence[Question]) -> list[Item]:
    """What people are shown, those that were chosen first asked first."""
    return [
        Item(question.id, question.prompt, question.replies, priority=float(len(questions) - place))
        for place, question in enumerate(questions)
    ]


def campaign_of(of: str, options: PeopleOptions, items: Sequence[Item]) -> Campaign:
    """The campaign that asks exactly this: ``RUN.STAGE.DIGEST``, RUN.STAGE cut where 64 characters are too few."""
    campaign = Campaign(
        name="x",
        form=options.form,
        overlap=options.overlap,
        instructions=options.instructions,
        gold_share=options.gold_share,
    )
    asked: list[Any] = [of, campaign.model_dump(mode="json")]
    asked.append([(item.id, item.prompt, item.completions) for item in items])
    asked.append([(str(item.expected), item.explanation) for item in items if item.expected is not None])
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
    return campaign.model_copy(update={"name": f"{of[: MAX_NAME - 1 - len(digest)]}.{digest}"})


def _token(options: PeopleOptions) -> str | None:
    if options.token_file is None:
        return None
    try:
        token = Path(options.token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("people.token_file", f"cannot be read: {error}") from error
    if not token:
        raise ConfigError("people.token_file", f"{options.token_file} is empty")
    return token
