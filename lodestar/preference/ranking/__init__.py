"""Ranks policies, checkpoints or annotators from a table of comparisons: ``lodestar rank FILE``.

Bradley–Terry strengths with their errors (bradley_terry), and winners that assume no model (elections).
"""

from lodestar.preference.ranking.bradley_terry import Fit, Ties, fit
from lodestar.preference.ranking.elections import Standing, condorcet_winner, standings
from lodestar.preference.ranking.separation import Separation, find_separation
from lodestar.preference.ranking.table import Table, read_table

__all__ = [
    "Fit",
    "Separation",
    "Standing",
    "Table",
    "Ties",
    "condorcet_winner",
    "find_separation",
    "fit",
    "read_table",
    "standings",
]
