"""FeedbackService for programs: lodestar.feedback.port over gRPC."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from lodestar.client.asynchronous import AsyncClient
from lodestar.data.schema import parse_feedback
from lodestar.errors import DeadlineExceeded, Unavailable
from lodestar.feedback import wire
from lodestar.feedback.campaign import Campaign
from lodestar.feedback.records import Added, Item, Judgement, Progress
from lodestar.records import Feedback
from lodestar.v1 import feedback_pb2, feedback_pb2_grpc

log = logging.getLogger(__name__)
ITEMS_PER_CALL = 256
"""A message is bounded, the number of a campaign's items is not."""
AGAIN_SECONDS = 2.0
"""Between looks at a campaign, and before a server that went away is asked again."""


class AsyncFeedbackClient(AsyncClient):
    """See lodestar.feedback.port.People; connects as lodestar.client.AsyncPolicyClient does."""

    _stub_class = feedback_pb2_grpc.FeedbackServiceStub

    async def _answer(self, method: str, request: Any) -> Any:
        return await self._connection.call(method, request, self._timeout)

    async def add_items(self, campaign: Campaign, items: Sequence[Item]) -> Added:
        """In calls of 256 items; see People.add_items."""
        added = known = 0
        link = ""
        for start in range(0, max(1, len(items)), ITEMS_PER_CALL):
            request = feedback_pb2.AddItemsRequest(
                campaign=wire.campaign_to_proto(campaign),
                items=[wire.item_to_proto(item) for item in items[start : start + ITEMS_PER_CALL]],
            )
            answer = await self._answer("AddItems", request)
            added, known, link = added + answer.added, known + answer.known, answer.link
        return Added(added, known, link)

    async def watch(self, campaign: str, *, after: int = 0) -> AsyncIterator[Judgement]:
        """See People.watch; raises Unavailable when the server goes: watch again ``after`` the last position seen."""
        request = feedback_pb2.WatchJudgementsRequest(campaign=campaign, after=after)
        messages = self._connection.stream(
            "WatchJudgements", request, None, lambda message: wire.judgement_from_proto(message.judgement)
        )
        async for judgement in messages:
            yield judgement

    async def progress(self, campaign: str) -> Progress:
        """See People.progress."""
        answer = await self._answer("GetProgress", feedback_pb2.GetProgressRequest(campaign=campaign))
        return wire.progress_from_proto(answer.progress)

    async def finished(self, campaign: str) -> Progress:
        """See People.finished; looks again every two seconds."""
        while True:
            try:
                progress = await self.progress(campaign)
            except (Unavailable, DeadlineExceeded) as error:
                log.warning("the page for people does not answer, which costs nothing but time: %s", error)
            else:
                if progress.finished:
                    return progress
            await asyncio.sleep(AGAIN_SECONDS)

    async def rows(self, campaign: str) -> list[dict[str, Any]]:
        """See People.rows."""
        request = feedback_pb2.ExportRequest(campaign=campaign)
        messages = self._connection.stream("Export", request, self._timeout, lambda message: json.loads(message.row))
        return [row async for row in messages]

    async def feedback(self, campaign: str) -> list[Feedback]:
        """See People.feedback."""
        return [parse_feedback(row).record for row in await self.rows(campaign)]

    async def invite(self, name: str, *, lead: bool = False) -> str:
        """See People.invite."""
        answer = await self._answer("Invite", feedback_pb2.InviteRequest(name=name, lead=lead))
        return str(answer.link)

    async def close_campaign(self, campaign: str) -> Progress:
        """See People.close_campaign."""
        answer = await self._answer("CloseCampaign", feedback_pb2.CloseCampaignRequest(campaign=campaign))
        return wire.progress_from_proto(answer.progress)
