"""Ranking from a table of comparisons: closed forms, slow references, separation, and the command line."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import choix
import numpy as np
import pytest
import statsmodels.api
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from scipy.stats import norm
from typer.testing import CliRunner

from lodestar.cli.app import app
from lodestar.errors import DataError, FailedPrecondition, InvalidArgument
from lodestar.preference.ranking import Table, condorcet_winner, find_separation, fit, read_table, standings

Rows = list[tuple[str, str, float, float]]
CYCLE: Rows = [("a", "b", 1, 3), ("b", "c", 1, 3), ("c", "a", 1, 2), ("a", "b", 0, 1), ("c", "b", 0.5, 2)]

tables = st.lists(
    st.tuples(
        st.sampled_from("abcd"), st.sampled_from("abcd"), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 4)
    ).filter(lambda row: row[0] != row[1]),
    min_size=1,
    max_size=9,
)


# --- closed forms on two items ---------------------------------------------------------------------------------------


def test_two_items_without_ties_have_the_log_odds_and_their_textbook_error() -> None:
    fitted = fit(Table.of([("a", "b", 1, 30), ("a", "b", 0, 10)]))
    assert fitted.difference(0, 1) == pytest.approx((math.log(3), math.sqrt(1 / 30 + 1 / 10)), rel=1e-8)
    assert fitted.errors == "information"
    assert fitted.strength_K.sum() == pytest.approx(0, abs=1e-12)


def test_two_items_with_half_votes_count_a_tie_as_half_a_win_and_as_less_noise() -> None:
    wins, ties, losses = 20, 12, 8
    p = (wins + ties / 2) / 40
    squares = wins * (1 - p) ** 2 + ties * (0.5 - p) ** 2 + losses * p**2
    z2 = norm.ppf(0.975) ** 2
    variance = 40 * (squares + z2 * p * (1 - p)) / (40 + z2) / (40 * p * (1 - p)) ** 2
    fitted = fit(Table.of([("a", "b", 1, wins), ("b", "a", 0.5, ties), ("b", "a", 1, losses)]))
    assert fitted.difference(0, 1) == pytest.approx((math.log(p / (1 - p)), math.sqrt(variance)), rel=1e-8)
    assert fitted.errors == "sandwich"


def test_two_items_under_davidson_have_the_log_odds_of_decided_comparisons() -> None:
    fitted = fit(Table.of([("a", "b", 1, 20), ("a", "b", 0.5, 12), ("a", "b", 0, 5)]), ties="davidson")
    assert fitted.difference(0, 1) == pytest.approx((math.log(4), math.sqrt(1 / 20 + 1 / 5)), rel=1e-8)
    assert fitted.log_ties == pytest.approx(math.log(12 / math.sqrt(20 * 5)), rel=1e-8)
    saturated = sum(n * math.log(n / 37) for n in (20, 12, 5))
    assert fitted.log_likelihood == pytest.approx(saturated, rel=1e-9)


@pytest.mark.parametrize("rows", [[("a", "b", 0.7, 10)], [("b", "a", 0.3, 10)], [("a", "b", 1, 7), ("a", "b", 0, 3)]])
def test_ten_votes_have_one_interval_however_they_are_written(rows: Rows) -> None:
    theirs = statsmodels.api.Logit([1.0] * 7 + [0.0] * 3, np.ones((10, 1))).fit(disp=0)
    table = Table.of(rows)
    fitted = fit(table)
    value, error = fitted.difference(table.items.index("a"), table.items.index("b"))
    assert (value, error) == pytest.approx((theirs.params[0], theirs.bse[0]), rel=1e-6)
    assert fitted.interval(table.items.index("a")) == pytest.approx([end / 2 for end in theirs.conf_int()[0]], rel=1e-5)
    assert table.record()[table.items.index("a")] == pytest.approx((7, 0, 3))
    assert table.record()[table.items.index("b")] == pytest.approx((3, 0, 7))


def test_no_table_has_an_interval_without_width() -> None:
    """A pair of which one tie is known is not sure because others met a thousand times."""
    well_known: Rows = [("b", "c", label, 400) for label in (1, 0.5, 0)]
    alone, beside = fit(Table.of([("a", "b", 0.5)])), fit(Table.of([("a", "b", 0.5, 1), *well_known]))
    for fitted in (alone, beside):
        assert fitted.difference(0, 1)[1] > 1.5
    ties = [fit(Table.of([("a", "b", 0.5, n)])).difference(0, 1)[1] for n in (1, 10, 100, 1000)]
    limits = [2 * (1 - 0.025 ** (1 / n)) for n in (10, 100, 1000)]  # of p − ½, were every vote that is no tie one-sided
    assert ties == sorted(ties, reverse=True)
    assert [1.96 * error > limit for error, limit in zip(ties[1:], limits, strict=True)] == [True] * 3


@pytest.mark.parametrize("n", [1, 2, 3, 6, 12])
def test_few_ties_of_votes_that_disagree_cover_the_truth(n: int) -> None:
    """Three items, n comparisons a pair of two votes each; tables without a maximum are drawn again."""
    rng, truth, covered, rounds = random.Random(n), {"a": 0.5, "b": 0.0, "c": -0.5}, 0, 200
    fitted = 0
    while fitted < rounds:
        rows: Rows = []
        for a, b in list(itertools.combinations("abc", 2)) * n:
            p = 1 / (1 + math.exp(truth[b] - truth[a]))
            rows.append((a, b, ((rng.random() < p) + (rng.random() < p)) / 2, 1))
        table = Table.of(rows)
        if find_separation(table):
            continue
        value, error = fit(table).difference(table.items.index("a"), table.items.index("c"))
        covered += abs(value - 1.0) < 1.96 * error
        fitted += 1
    assert covered / rounds >= 0.93


# --- slow references on more items -----------------------------------------------------------------------------------


def zermelo(rows: Rows, items: str) -> dict[str, float]:
    """Hunter's (2004) form of Zermelo's iteration, half votes."""
    worth = dict.fromkeys(items, 1.0)
    for _ in range(20_000):
        won, faced = dict.fromkeys(items, 0.0), dict.fromkeys(items, 0.0)
        for first, second, label, count in rows:
            won[first] += count * label
            won[second] += count * (1 - label)
            for name in (first, second):
                faced[name] += count / (worth[first] + worth[second])
        worth = {name: won[name] / faced[name] for name in items}
        scale = math.prod(worth.values()) ** (1 / len(worth))
        worth = {name: value / scale for name, value in worth.items()}
    return {name: math.log(value) for name, value in worth.items()}


def slow_davidson(parameters: list[float], rows: Rows, items: str) -> float:
    """Minus log-likelihood, written out."""
    theta, tie = dict(zip(items, parameters, strict=False)), math.exp(parameters[-1])
    total = 0.0
    for first, second, label, count in rows:
        one, other = math.exp(theta[first] / 2), math.exp(theta[second] / 2)
        weights = {1: one / other, 0.5: tie, 0: other / one}
        total -= count * math.log(weights[label] / sum(weights.values()))
    return total


def test_half_votes_agree_with_zermelos_iteration() -> None:
    rng = random.Random(0)
    pairs = [pair for pair in itertools.combinations("abcde", 2) for _ in range(3)]
    rows: Rows = [(a, b, rng.choice([0.0, 0.5, 1.0, 0.3]), rng.randint(1, 9)) for a, b in pairs]
    fitted, slow = fit(Table.of(rows)), zermelo(rows, "abcde")
    assert dict(zip(fitted.items, fitted.strength_K, strict=True)) == pytest.approx(slow, abs=1e-7)


def test_strengths_are_choixs_and_errors_those_of_statsmodels() -> None:
    rng, items = random.Random(3), "abcde"
    rows: Rows = [(a, b, label, rng.randint(1, 9)) for a, b in itertools.combinations(items, 2) for label in (0, 1)]
    fitted = fit(Table.of(rows))
    won = [(items.index(a), items.index(b))[:: 1 if label else -1] for a, b, label, n in rows for _ in range(int(n))]
    theirs = choix.opt_pairwise(5, won)
    assert fitted.strength_K == pytest.approx(theirs - theirs.mean(), abs=1e-5)
    design = np.zeros((len(won), 5))
    for row, (winner, loser) in enumerate(won):
        design[row, winner], design[row, loser] = 1.0, -1.0
    signs = np.array([1.0, -1.0] * (len(won) // 2) + [1.0] * (len(won) % 2))  # a table of wins alone separates
    model = statsmodels.api.Logit((signs + 1) / 2, (design * signs[:, None])[:, 1:]).fit(disp=0)
    for item in range(1, 5):
        value, error = fitted.difference(item, 0)
        assert (value, error) == pytest.approx((model.params[item - 1], model.bse[item - 1]), rel=1e-5)


def test_many_half_votes_have_the_sandwich_of_statsmodels() -> None:
    rng, items = random.Random(4), "abcd"
    pairs = list(itertools.combinations(range(4), 2)) * 800
    labels = [rng.choices([1.0, 0.5, 0.0], [3, 4, 2])[0] for _ in pairs]
    fitted = fit(Table.of([(items[i], items[j], label) for (i, j), label in zip(pairs, labels, strict=True)]))
    design = np.zeros((len(pairs), 4))
    for row, (i, j) in enumerate(pairs):
        design[row, i], design[row, j] = 1.0, -1.0
    family = statsmodels.api.families.Binomial()
    model = statsmodels.api.GLM(labels, design[:, 1:], family=family).fit(cov_type="HC0")
    assert fitted.errors == "sandwich"
    for item in range(1, 4):
        assert fitted.difference(item, 0) == pytest.approx((model.params[item - 1], model.bse[item - 1]), rel=5e-3)


def test_davidson_agrees_with_a_search_and_its_errors_with_differences() -> None:
    fitted = fit(Table.of(CYCLE), ties="davidson")
    found = minimize(slow_davidson, [0.0] * 4, (CYCLE, "abc"), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 20_000})  # fmt: skip  # noqa: E501
    slow = found.x[:3] - found.x[:3].mean()
    assert fitted.strength_K == pytest.approx(slow, abs=1e-4)
    assert fitted.log_ties == pytest.approx(found.x[3], abs=1e-4)
    best, h = [*fitted.strength_K, fitted.log_ties], 1e-4

    def at(*moves: tuple[int, float]) -> float:
        moved = list(best)
        for place, by in moves:
            moved[place] += by
        return slow_davidson(moved, CYCLE, "abc")

    hessian = [
        [(at((i, h), (j, h)) - at((i, h), (j, -h)) - at((i, -h), (j, h)) + at((i, -h), (j, -h))) / (4 * h * h)
         for j in range(4)] for i in range(4)
    ]  # fmt: skip
    covariance = np.linalg.pinv(np.array(hessian), rcond=1e-5)
    assert fitted.covariance_KK == pytest.approx(covariance[:3, :3], rel=1e-3)


def test_a_penalty_is_a_normal_prior() -> None:
    def slow(x: list[float]) -> float:
        return math.log1p(math.exp(-(x[0] - x[1]))) * 7 + 0.5 * 0.3 * (x[0] ** 2 + x[1] ** 2)

    fitted = fit(Table.of([("a", "b", 1, 7)]), penalty=0.3)
    assert fitted.strength_K == pytest.approx(minimize(slow, [0.0, 0.0], tol=1e-12).x, abs=1e-5)
    assert fitted.errors == "laplace"


def test_intervals_of_davidson_and_half_votes_cover_the_truth() -> None:
    """Ties as two votes that disagree for half votes, ties of Davidson's own for his model."""
    rng, truth, covered = random.Random(1), {"a": 0.8, "b": 0.0, "c": -0.8}, {"half": 0, "davidson": 0}
    rounds = 150
    for _ in range(rounds):
        votes: Rows = []
        equals: Rows = []
        for a, b in list(itertools.combinations("abc", 2)) * 40:
            gap = truth[a] - truth[b]
            p = 1 / (1 + math.exp(-gap))
            votes.append((a, b, ((rng.random() < p) + (rng.random() < p)) / 2, 1))
            (outcome,) = rng.choices([1.0, 0.5, 0.0], [math.exp(gap / 2), 0.7, math.exp(-gap / 2)])
            equals.append((a, b, outcome, 1))
        for ties, rows in (("half", votes), ("davidson", equals)):
            value, error = fit(Table.of(rows), ties=ties).difference(0, 2)  # type: ignore[arg-type]
            covered[ties] += abs(value - 1.6) < 1.96 * error
    assert all(0.90 <= count / rounds <= 0.99 for count in covered.values()), covered


# --- separation ------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(tables, st.booleans())
def test_separation_is_found_where_a_linear_programme_finds_it(rows: Rows, davidson: bool) -> None:
    table = Table.of(rows)
    assume(len(table.items) > 1)
    if davidson and not table.ties:
        davidson = False  # ν is 0, and plain Bradley–Terry is left
    number = {name: i for i, name in enumerate(table.items)}
    parameters = len(number) + davidson
    bounds, gain = [], np.zeros(parameters)
    for first, second, label, _ in rows:
        gap = np.zeros(parameters)
        gap[number[first]], gap[number[second]] = 0.5, -0.5
        tie = np.eye(parameters)[-1]
        predictors = {1.0: gap, 0.5: tie, 0.0: -gap} if davidson else {1.0: gap, 0.0: -gap}
        seen = [label] if davidson or label != 0.5 else [0.0, 1.0]
        for outcome in seen:
            for other in predictors.keys() - {outcome}:
                bounds.append(predictors[other] - predictors[outcome])
                gain += predictors[outcome] - predictors[other]
    # A direction along which no observed outcome falls behind and one gains; or the model cannot tell two apart.
    found = linprog(-gain, A_ub=np.array(bounds), b_ub=np.zeros(len(bounds)), bounds=[(-1, 1)] * parameters)
    rank = np.linalg.matrix_rank(np.array(bounds))
    separated = found.fun < -1e-9 or rank < parameters - 1
    assert (find_separation(table, davidson=davidson) is not None) == separated
    if not separated:
        fitted = fit(table, ties="davidson" if davidson else "half")
        assert np.isfinite(fitted.strength_K).all()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a", "b", 1.0), ("b", "c", 1.0), ("c", "b", 1.0)], "a never lost to the others and b, c never won against"),
        ([("a", "b", 1.0), ("b", "a", 1.0), ("c", "d", 0.5)], "never compared with one another: a, b | c, d"),
    ],
)
def test_separation_names_the_items_and_what_to_do(rows: list[tuple[str, str, float]], words: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"--penalty 0\.1") as caught:
        fit(Table.of(rows))
    assert words in str(caught.value)
    assert np.isfinite(fit(Table.of(rows), penalty=0.1).strength_K).all()


def test_wins_and_ties_alone_separate_davidsons_model_but_not_half_votes() -> None:
    table = Table.of([("a", "b", 1, 5), ("a", "b", 0.5, 5)])
    assert fit(table).difference(0, 1)[0] == pytest.approx(math.log(3))
    with pytest.raises(FailedPrecondition, match="ever larger propensity for ties"):
        fit(table, ties="davidson")


def test_davidson_refuses_labels_it_has_no_outcome_for() -> None:
    with pytest.raises(InvalidArgument, match=r"1, 0\.5 and 0"):
        fit(Table.of([("a", "b", 0.7), ("b", "a", 0.6)]), ties="davidson")


# --- elections -------------------------------------------------------------------------------------------------------


def test_the_condorcet_winner_beats_everybody_even_where_borda_prefers_another() -> None:
    # a beats b and c narrowly; b beats c by much.
    table = Table.of([("a", "b", 1, 51), ("a", "b", 0, 49), ("a", "c", 1, 51), ("c", "a", 1, 49), ("b", "c", 1, 100)])
    votes_KK = table.votes_KK()
    assert table.items[condorcet_winner(votes_KK)] == "a"  # type: ignore[index]
    found = dict(zip(table.items, standings(votes_KK), strict=True))
    assert [found[name].copeland for name in "abc"] == [2, 1, 0]
    assert [found[name].borda for name in "abc"] == pytest.approx([0.51, 0.745, 0.245])


def test_a_cycle_and_a_missing_pair_have_no_condorcet_winner() -> None:
    cycle = Table.of([("a", "b", 1.0), ("b", "c", 1.0), ("c", "a", 1.0)])
    assert condorcet_winner(cycle.votes_KK()) is None
    assert [one.copeland for one in standings(cycle.votes_KK())] == [1, 1, 1]
    unmet = Table.of([("a", "b", 1.0), ("b", "c", 1.0)])
    assert condorcet_winner(unmet.votes_KK()) is None
    assert standings(unmet.votes_KK())[0].opponents == 1


# --- files and the command -------------------------------------------------------------------------------------------


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("first,second,winner,count,note\na,b,a,2,x\nb,a,tie,1,\nb,a,b,3,y\n")
    rows = [{"first": "a", "second": "b", "label": label} for label in (1, 1, 0.5, 0, 0, 0)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    one, other = read_table(tmp_path / "t.csv"), read_table(tmp_path / "t.jsonl")
    assert one.items == other.items == ("a", "b")
    assert (one.votes_KK() == other.votes_KK()).all()
    assert one.record() == other.record() == [(2, 1, 3), (3, 1, 2)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "first,second\na,b\n", r"t\.csv:1: the header must name first, second, and label or winner"),
        ("t.csv", "first,second,label\na,b,1\na,b\n", r"t\.csv:3: has another number of fields"),
        ("t.csv", "first,second,label\na,b,1.2\n", r"t\.csv:2: label: must be 0 … 1"),
        ("t.csv", "first,second,label\na,b,nan\n", r"t\.csv:2: label: must be a number"),
        ("t.csv", "first,second,winner\na,b,c\n", r"t\.csv:2: winner: must be a, b or tie, is 'c'"),
        ("t.csv", "first,second,label\na,a,1\n", r"t\.csv:2: second: a is compared with itself"),
        ("t.csv", "first,second,label\n", r"t\.csv: has no rows"),
        ("t.jsonl", '{"first": "a", "second": "b"}\n', r"t\.jsonl:1: label, winner: neither is given"),
        ("t.jsonl", '{"first": "a", "second": "b", "label": 1, "count": 0}\n', r"t\.jsonl:1: count: must be above 0"),
        ("t.jsonl", '{"first": "a", "second": null, "label": 1}\n', r"t\.jsonl:1: second: must name an item"),
        ("t.jsonl", "{\n", r"t\.jsonl:1: is not JSON"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_table(tmp_path / name)


def test_the_command_prints_strengths_with_intervals_and_winners(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("first,second,label,count\nnew,old,1,30\nnew,old,0,10\n")
    printed = CliRunner().invoke(app, ["rank", str(tmp_path / "t.csv")], env={"COLUMNS": "120"})
    assert printed.exit_code == 0, printed.output
    assert "+0.549" in printed.output
    assert "Condorcet winner: new" in printed.output
    figures = json.loads(CliRunner().invoke(app, ["rank", str(tmp_path / "t.csv"), "--json"]).output)
    best = figures["items"][0]
    assert best["item"] == "new"
    assert best["strength"] == pytest.approx(math.log(3) / 2)
    assert best["low"] < best["strength"] < best["high"]
    assert figures["winners"] == {"condorcet": "new", "copeland": ["new"], "borda": ["new"]}


def test_the_command_says_separation_and_prints_the_votes_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("first,second,label\nnew,old,1\n")
    printed = CliRunner().invoke(app, ["rank", str(tmp_path / "t.csv")], env={"COLUMNS": "200"})
    assert printed.exit_code == 0
    assert "no strengths: new never lost to the others" in printed.output
    assert "Condorcet winner: new" in printed.output
    figures = json.loads(CliRunner().invoke(app, ["rank", str(tmp_path / "t.csv"), "--json"]).output)
    assert figures["items"][0]["strength"] is None
    assert figures["separation"]["groups"] == [["new"], ["old"]]
    prior = CliRunner().invoke(app, ["rank", str(tmp_path / "t.csv"), "--penalty", "0.5", "--json"])
    assert json.loads(prior.output)["items"][0]["strength"] > 0


def test_arena_votes_are_ranked_as_they_are_published(tmp_path: Path) -> None:
    votes = [("x", "y", "model_a"), ("y", "x", "model_b"), ("x", "y", "tie (bothbad)")]
    rows = [{"model_a": a, "model_b": b, "winner": winner, "turn": 1} for a, b, winner in votes]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert read_table(tmp_path / "a.json").record() == [(2.0, 1.0, 0.0), (0.0, 1.0, 2.0)]
    header = "id,model_a,model_b,prompt,winner_model_a,winner_model_b,winner_tie\n"
    (tmp_path / "a.csv").write_text(header + "1,x,y,q,1,0,0\n2,x,y,q,0,0,1\n")
    assert read_table(tmp_path / "a.csv").record() == [(1.0, 1.0, 0.0), (0.0, 1.0, 1.0)]
    (tmp_path / "b.jsonl").write_text('{"model_a": "x", "model_b": "y", "winner": "nobody"}\n')
    with pytest.raises(DataError, match=r"b\.jsonl:1: winner must be one of model_a, model_b, tie, .*, got 'nobody'"):
        read_table(tmp_path / "b.jsonl")
