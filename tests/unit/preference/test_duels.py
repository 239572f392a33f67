"""Duels: who is asked, when it is settled, and what it cost."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lodestar.cli.app import app
from lodestar.errors import FailedPrecondition, InvalidArgument
from lodestar.preference.ranking import condorcet_winner, standings
from lodestar.preference.ranking.duels import (
    METHODS,
    Duels,
    Method,
    _log_gamma,
    condorcet_regret,
    copeland_bounds,
    copeland_regret,
    decisions,
    double_thompson,
    rucb,
)
from lodestar.preference.ranking.judges import Recorded, Replies, Scored, UsedUp
from lodestar.preference.ranking.table import Floats, Table

CYCLE = np.array([[0.5, 0.8, 0.2, 0.9], [0.2, 0.5, 0.8, 0.9], [0.8, 0.2, 0.5, 0.9], [0.1, 0.1, 0.1, 0.5]])


def line(count: int) -> Floats:
    strength_K = np.linspace(1.5, -1.5, count)
    return 1 / (1 + np.exp(strength_K[None, :] - strength_K[:, None]))


def played(duels: Duels, p_KK: Floats, seed: int, limit: int = 20_000) -> Duels:
    rng = np.random.default_rng([seed, 1])
    while not duels.settled and duels.told < limit:
        for _ in range(5):
            first, second = duels.propose()
            assert first != second
            duels.tell(first, second, float(rng.random() < p_KK[first, second]))
    return duels


@pytest.mark.parametrize("method", METHODS)
def test_the_best_of_a_line_is_found(method: Method) -> None:
    names = [f"p{i}" for i in range(5)]
    right = [played(Duels(names, method=method, seed=seed), line(5), seed).winners for seed in range(6)]
    assert right == [("p0",)] * 6


def test_in_a_cycle_the_copeland_winners_are_named_together() -> None:
    for seed in range(4):
        duels = played(Duels("abcd", method="copeland", seed=seed), CYCLE, seed)
        assert set(duels.winners) <= {"a", "b", "c"}
        assert duels.winners
        assert condorcet_winner(duels.table().votes_KK()) is None or duels.told < 60


def test_equals_are_settled_by_a_tolerance_alone() -> None:
    even = np.full((2, 2), 0.5)
    assert not played(Duels("ab", seed=3), even, 3, limit=3000).settled
    settled = played(Duels("ab", seed=3, tolerance=0.1), even, 3)
    assert set(settled.winners) == {"a", "b"}


@pytest.mark.slow
def test_a_wrong_winner_is_named_no_oftener_than_stated() -> None:
    p_KK = np.full((4, 4), 0.5)
    wrong = sum(
        bool(played(Duels("abcd", seed=seed, error=0.1), p_KK, seed, limit=1500).settled) for seed in range(200)
    )
    assert wrong <= 200 * 0.1, "all are equal: whoever is named alone is named wrongly"


def test_decisions_need_evidence_and_say_who() -> None:
    w_KK = np.array([[0.0, 30.0, 5.0], [2.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    decided_KK = decisions(w_KK, 0.05)
    assert (decided_KK[0, 1], decided_KK[1, 0]) == (1.0, 0.0)
    assert math.isnan(decided_KK[0, 2])
    assert math.isnan(decided_KK[1, 2])
    low_K, high_K = copeland_bounds(decided_KK)
    assert (low_K.tolist(), high_K.tolist()) == ([1.0, 0.0, 0.0], [2.0, 1.0, 2.0])


def test_the_logarithm_of_gamma_is_right() -> None:
    x = np.array([0.5, 1.0, 1.5, 2.0, 7.25, 100.5, 30_000.0])
    assert _log_gamma(x) == pytest.approx([math.lgamma(value) for value in x], abs=1e-9, rel=1e-11)


def test_rucb_ends_with_the_winner_against_itself() -> None:
    w_KK = np.array([[0.0, 900.0], [100.0, 0.0]])
    assert rucb(w_KK, 1000, np.random.default_rng(0)) == (0, 0)
    assert double_thompson(w_KK, 1000, np.random.default_rng(0)) == (0, 0)


@pytest.mark.parametrize("method", ["rucb", "double_thompson"])
def test_regret_stops_growing(method: Method) -> None:
    p_KK, rng = line(6), np.random.default_rng(0)
    w_KK, pairs = np.zeros((6, 6)), []
    for t in range(4000):
        first, second = METHODS[method](w_KK, t + 1, rng)
        pairs.append((first, second))
        if first != second:
            won = rng.random() < p_KK[first, second]
            w_KK[(first, second) if won else (second, first)] += 1
    regret_T = condorcet_regret(p_KK, pairs)
    assert regret_T[-1] - regret_T[1999] < 0.2 * regret_T[1999]


def test_regret_is_counted_as_the_papers_do() -> None:
    p_KK = line(3)
    gap = p_KK[0] - 0.5
    assert condorcet_regret(p_KK, [(0, 0), (0, 1), (1, 2)]).tolist() == pytest.approx(
        [0.0, gap[1] / 2, gap[1] / 2 + (gap[1] + gap[2]) / 2]
    )
    assert copeland_regret(CYCLE, [(0, 1), (3, 0)]).tolist() == pytest.approx([0.0, 1 / 3])
    with pytest.raises(FailedPrecondition, match="copeland_regret"):
        condorcet_regret(CYCLE, [(0, 1)])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"names": "a"}, "names"),
        ({"names": "aa"}, "names"),
        ({"method": "magic"}, "method"),
        ({"error": 0.0}, "error"),
        ({"error": 0.5}, "error"),
        ({"tolerance": -0.1}, "tolerance"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        Duels(**{"names": "ab", **options})  # type: ignore[arg-type]
    assert raised.value.field == field
    duels = Duels("ab")
    for pair in ((0, 0, 1.0), (0, 2, 1.0), (0, 1, 1.5)):
        with pytest.raises(InvalidArgument):
            duels.tell(*pair)  # type: ignore[arg-type]


def test_recorded_comparisons_are_used_once_each() -> None:
    judge = Recorded(Table.of([("a", "b", 1.0, 2), ("b", "a", 0.5)]))
    assert sorted(judge.judge([("a", "b"), ("b", "a"), ("a", "b")])) in (
        [0.0, 0.5, 1.0],
        [0.5, 1.0, 1.0],
        [0.0, 0.0, 0.5],
    )
    with pytest.raises(UsedUp, match="no comparison of b and a is left"):
        judge.judge([("b", "a")])
    with pytest.raises(InvalidArgument, match="count"):
        Recorded(Table.of([("a", "b", 1.0, 0.5)]))


def test_a_score_judges_replies_to_the_same_prompt() -> None:
    replies = Replies({"long": {"p": "xxxx", "q": "yy"}, "short": {"p": "x", "q": "yy"}})
    judge = Scored(replies, lambda texts: [len(reply) for _, reply in texts])
    assert judge.judge([("long", "short"), ("short", "long")]) == [1.0, 0.0]
    with pytest.raises(InvalidArgument, match="no prompt in common"):
        Replies({"a": {"p": "x"}, "b": {"q": "x"}})
    with pytest.raises(UsedUp, match="alike"):
        Replies({"a": {"p": "x"}, "b": {"p": "x"}}).draw("a", "b")


def test_the_command_names_the_winner_and_prints_the_table(tmp_path: Path) -> None:
    rows = ["first,second,label,count", "new,old,1,60", "new,old,0,10", "old,bad,1,40", "new,bad,1,40"]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    output = tmp_path / "judged.csv"
    said = CliRunner().invoke(app, ["duel", "--by", f"table:{tmp_path / 'table.csv'}", "--output", str(output)])
    assert said.exit_code == 0, said.output
    assert "new: best after" in said.output
    assert "Condorcet winner: new" in said.output
    judged = output.read_text().splitlines()
    assert judged[0] == "first,second,label"
    assert f"{len(judged) - 1} comparisons" in said.output


def test_what_is_not_settled_says_so(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("first,second,label\na,b,1\n")
    output = tmp_path / "judged.csv"
    said = CliRunner().invoke(app, ["duel", "--by", f"table:{tmp_path / 'table.csv'}", "--output", str(output)])
    assert "not settled after 1 duels" in said.output
    assert "a leads" in said.output
    assert standings(np.array([[0.0, 1.0], [0.0, 0.0]]))[0].copeland == 1.0
