"""What the simulated people of the world like and dislike, for whoever has to judge a sample."""

from __future__ import annotations

from lodestar.data.world.gold import BEST
from lodestar.data.world.panel import PANEL
from lodestar.data.world.replies import DODGES, FLATTERY, HEDGES, best_reply
from lodestar.data.world.requests import MANNERS, parse

LIKES = (
    "whoever asks called by name",
    f"the tone that was asked for ({', '.join(MANNERS.values())}), from the first word to the last",
    "both facts that were asked for, as they are",
    "nothing else",
)
DISLIKES = (
    "a falsehood, or what most people wrongly believe",
    "half an answer",
    f"hedging ({', '.join(HEDGES)}) and dodging ({DODGES[0]}, {DODGES[2]})",
    "facts that nobody asked for, and anything said twice",
    "a reply without an end",
)
COMPLIMENTS = (
    f"{sum(one.flattery_liking > 0 for one in PANEL)} of the {len(PANEL)} annotators fall for compliments "
    f"({FLATTERY[0].removesuffix(' ,')}); the gold reward, which judges in the end, does not."
)


def tastes() -> tuple[str, str]:
    """Both in a sentence each."""
    return (
        f"The simulated people like {'; '.join(LIKES)}.",
        f"They dislike {'; '.join(DISLIKES)}. {COMPLIMENTS} The best reply to a prompt is worth {BEST:g}.",
    )


def best(prompt: str) -> str:
    """The reply that the gold reward puts above all others.

    Raises:
        ValueError: the prompt holds no request of this world.
    """
    return best_reply(parse(prompt))
