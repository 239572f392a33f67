"""What a stage that asks people needs, whoever stands behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from lodestar.feedback.campaign import Campaign
from lodestar.feedback.records import Added, Item, Judgement, Progress
from lodestar.records import Feedback


class People(Protocol):
    """People who judge. Every call may be repeated: after a restart a stage says the same again and goes on.

    A stage adds its items under a campaign of its own name, tells the person at the terminal ``str(progress)``, and
    waits as long as it takes.
    """

    async def add_items(self, campaign: Campaign, items: Sequence[Item]) -> Added:
        """Opens the campaign, or adds to it.

        Raises:
            InvalidArgument: an item or the campaign cannot be asked; the field is named.
            FailedPrecondition: the campaign is closed or was opened with other settings, or an item of this id was
                added with other content.
        """

    def watch(self, campaign: str, *, after: int = 0) -> AsyncIterator[Judgement]:
        """Every change after a position, as it happens; ends when the campaign is closed."""

    async def progress(self, campaign: str) -> Progress:
        """How far it is."""

    async def finished(self, campaign: str) -> Progress:
        """Waits until all is judged or the campaign is closed, over the server's restarts."""

    async def rows(self, campaign: str) -> list[dict[str, Any]]:
        """Rows of Lodestar's data files, as of now."""

    async def feedback(self, campaign: str) -> list[Feedback]:
        """The same as records, where completions were judged."""

    async def invite(self, name: str, *, lead: bool = False) -> str:
        """The link by which a person comes in; it is told once."""

    async def close_campaign(self, campaign: str) -> Progress:
        """Asks no more."""
