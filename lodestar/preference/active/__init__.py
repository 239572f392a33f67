"""Which pairs to ask about, of people, a panel or a judge alike: scores of candidates, and batches of them.

    scores_N = bald(margins_NM)                              # or disagreement, volume_removal, at_random
    asked = diverse_batch(scores_N, features_NF, count=100)  # or best(scores_N, count)

N runs over candidate pairs, M over an ensemble's members, S over samples of a posterior, F over features. A margin is
the reward of the first reply less that of the second; larger scores are asked sooner (Item.priority).
"""

from lodestar.preference.active.batches import best, diverse_batch
from lodestar.preference.active.choosers import CHOOSERS, at_random, bald, disagreement, volume_removal

__all__ = ["CHOOSERS", "at_random", "bald", "best", "disagreement", "diverse_batch", "volume_removal"]
