"""The synthetic world: small questions about fixed facts, a hidden gold reward and a panel of noisy annotators."""

from lodestar.data.world.gold import gold_parts, gold_reward
from lodestar.data.world.panel import PANEL, Annotator, compare, rank
from lodestar.data.world.replies import AVERAGE, CARELESS, EXPERT, Draft, Writer, edit, write
from lodestar.data.world.requests import Request, every_request, parse

__all__ = [
    "AVERAGE",
    "CARELESS",
    "EXPERT",
    "PANEL",
    "Annotator",
    "Draft",
    "Request",
    "Writer",
    "compare",
    "edit",
    "every_request",
    "gold_parts",
    "gold_reward",
    "parse",
    "rank",
    "write",
]
