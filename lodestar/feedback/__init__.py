"""People's judgements for programs: what is asked (campaign), what comes back (verdicts, records), and the client.

    from lodestar.feedback import AsyncFeedbackClient, Campaign, Item
    async with AsyncFeedbackClient("127.0.0.1:50051") as people:
        added = await people.add_items(Campaign(name="r1.label", form="pair"), [Item("1", "what …", ("a", "b"))])
        print(f"judge at {added.link}")
        await people.finished("r1.label")
        rows = await people.feedback("r1.label")

The page itself is lodestar_services.feedback; this package knows nothing of it but proto/lodestar/v1/feedback.proto.
"""

from lodestar.feedback.campaign import Aspect, Campaign
from lodestar.feedback.client import AsyncFeedbackClient
from lodestar.feedback.port import People
from lodestar.feedback.records import Added, Item, Judgement, Progress
from lodestar.feedback.verdicts import (
    AspectVerdict,
    Demonstrated,
    Exchange,
    PairVerdict,
    RankingVerdict,
    RatingVerdict,
    Verdict,
    WrittenPrompt,
)

__all__ = [
    "Added",
    "Aspect",
    "AspectVerdict",
    "AsyncFeedbackClient",
    "Campaign",
    "Demonstrated",
    "Exchange",
    "Item",
    "Judgement",
    "PairVerdict",
    "People",
    "Progress",
    "RankingVerdict",
    "RatingVerdict",
    "Verdict",
    "WrittenPrompt",
]
