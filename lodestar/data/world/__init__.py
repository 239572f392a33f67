"""The synthetic world: small questions about fixed facts, a hidden gold reward and a panel of noisy annotators."""

from lodestar.data.world.gold import gold_parts, gold_reward
from lodestar.data.world.panel import PANEL, Annotator, bayes_accuracy, compare, expected_label, rank
from lodestar.data.world.replies import AVERAGE, CARELESS, EXPERT, Draft, Writer, best_reply, edit, write
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
    "bayes_accuracy",
    "best_reply",
    "compare",
    "edit",
    "every_request",
    "expected_label",
    "gold_parts",
    "gold_reward",
    "parse",
    "rank",
    "write",
]
