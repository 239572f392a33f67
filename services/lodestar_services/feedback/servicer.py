"""lodestar.v1.FeedbackService: translates between messages and records."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import sqlalchemy as sa

from lodestar import metrics
from lodestar.feedback import wire
from lodestar.feedback.records import Judgement, Progress
from lodestar.v1 import feedback_pb2 as pb
from lodestar.v1 import feedback_pb2_grpc
from lodestar_services.feedback import campaigns, export, people
from lodestar_services.feedback.site import Site

Context = grpc.aio.ServicerContext[Any, Any]
AT_ONCE = 500
"""Judgements read per look."""


class FeedbackServicer(feedback_pb2_grpc.FeedbackServiceServicer):
    """See proto/lodestar/v1/feedback.proto."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def AddItems(self, request: pb.AddItemsRequest, context: Context) -> pb.AddItemsResponse:
        campaign = wire.campaign_from_proto(request.campaign)
        items = [wire.item_from_proto(item, f"items[{i}]") for i, item in enumerate(request.items)]
        added = await self._site.database.run(campaigns.add_items, campaign, items, now=self._site.clock())
        self._site.news.announce()
        return pb.AddItemsResponse(added=added.added, known=added.known, link=self._site.campaign(campaign.name))

    async def WatchJudgements(
        self, request: pb.WatchJudgementsRequest, context: Context
    ) -> AsyncIterator[pb.WatchJudgementsResponse]:
        after = request.after
        while True:
            found, closed = await self._site.database.read(_changes(request.campaign, after))
            for judgement in found:
                yield pb.WatchJudgementsResponse(judgement=wire.judgement_to_proto(judgement))
                after = judgement.position
            if closed and not found:
                return
            if len(found) < AT_ONCE:
                await self._site.news.wait()

    async def Export(self, request: pb.ExportRequest, context: Context) -> AsyncIterator[pb.ExportResponse]:
        for row in await self._site.database.read(export.export, request.campaign):
            yield pb.ExportResponse(row=json.dumps(row, ensure_ascii=False))

    async def GetProgress(self, request: pb.GetProgressRequest, context: Context) -> pb.GetProgressResponse:
        return pb.GetProgressResponse(progress=wire.progress_to_proto(await self._progress(request.campaign)))

    async def Invite(self, request: pb.InviteRequest, context: Context) -> pb.InviteResponse:
        role: people.PersonRole = "lead" if request.lead else "annotator"
        token = await self._site.database.run(people.invite, request.name, role, now=self._site.clock())
        return pb.InviteResponse(link=self._site.invitation(token))

    async def CloseCampaign(self, request: pb.CloseCampaignRequest, context: Context) -> pb.CloseCampaignResponse:
        await self._site.database.run(campaigns.close, request.campaign, now=self._site.clock())
        self._site.news.announce()
        return pb.CloseCampaignResponse(progress=wire.progress_to_proto(await self._progress(request.campaign)))

    async def _progress(self, campaign: str) -> Progress:
        progress = await self._site.database.read(export.progress, campaign, self._site)
        measure(progress)
        return progress


def measure(progress: Progress) -> None:
    """Sets the campaign's gauges."""
    metrics.FEEDBACK_WANTED.labels(progress.campaign).set(progress.wanted)
    metrics.FEEDBACK_DONE.labels(progress.campaign).set(progress.done)
    if progress.alpha is not None:
        metrics.FEEDBACK_ALPHA.labels(progress.campaign).set(progress.alpha)


def _changes(name: str, after: int) -> Callable[[sa.Connection], tuple[list[Judgement], bool]]:
    def work(connection: sa.Connection) -> tuple[list[Judgement], bool]:
        opened = campaigns.find(connection, name)
        return campaigns.judgements(connection, opened, after=after, limit=AT_ONCE), opened.closed

    return work
