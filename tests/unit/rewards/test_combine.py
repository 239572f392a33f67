"""Sources, rules and functions of one's own, without a server."""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path

import pytest

from lodestar.config import SourceConfig
from lodestar.errors import ConfigError, SourceFailed
from lodestar.rewards.combine import Judgement, combine, member_labels, member_scores, over_ensemble
from lodestar.rewards.functions import call, load_function, source_digest
from lodestar.rewards.rules import Exchange, repetition, rule_of


def test_an_ensemble_is_its_mean_less_the_offset_and_its_standard_deviation() -> None:
    members = [1.0, 2.5, 4.0]
    judged = over_ensemble(members, {}, offset=0.5)
    assert judged.value == pytest.approx(statistics.fmean(members) - 0.5)
    assert judged.deviation == pytest.approx(statistics.pstdev(members))


def test_sources_add_up_by_weight_and_a_source_without_one_is_only_reported() -> None:
    judged = {"a": Judgement(2.0, 0.3, {"helpful": 1.5}), "b": Judgement(-1.0, 0.4), "gold": Judgement(9.0)}
    score = combine(judged, {"a": 1.0, "b": 0.5})
    assert score.score == score.mean == pytest.approx(1.5)
    assert score.standard_deviation == pytest.approx(math.hypot(0.3, 0.2))
    assert score.heads == {"a": 2.0, "b": -1.0, "gold": 9.0, "a.helpful": 1.5}


def test_the_members_of_an_ensemble_say_what_the_score_would_be_by_each_alone() -> None:
    source = SourceConfig(name="rm", heads="ensemble", weight=2.0)
    labels = [f"reward-{i}" for i in range(1, 12)]
    values = [0.5 * i - (i % 3) for i in range(11)]
    judged = over_ensemble(values, dict(zip(labels, values, strict=True)), offset=0.25)
    score = combine({"rm": judged, "length": Judgement(-1.0)}, {"rm": 2.0, "length": 0.5})
    shuffled = dict(sorted(score.heads.items(), reverse=True))
    found = member_scores(source, score.score, shuffled)
    assert found == pytest.approx([2.0 * (value - 0.25) - 0.5 for value in values])
    assert statistics.fmean(found) == pytest.approx(score.score)
    assert statistics.pstdev(found) == pytest.approx(score.standard_deviation)
    assert member_scores(source, 1.0, {"rm": 1.0, "other.reward-1": 2.0}) == ()


def test_heads_that_rate_aspects_are_no_members() -> None:
    assert member_labels(("reward-1", "reward-2", "helpful")) == ("reward-1", "reward-2")
    assert member_labels(("a", "b")) == ("a", "b")


@pytest.mark.parametrize(
    ("rule", "exchange", "value"),
    [
        ({"rule": "ended"}, Exchange("p", "x", cut_off=True), 0.0),
        ({"rule": "ended"}, Exchange("p", "x"), 1.0),
        ({"rule": "length", "words": 3}, Exchange("p", "a b c"), 0.0),
        ({"rule": "length", "words": 3}, Exchange("p", "a b c d e"), -2.0),
        ({"rule": "pattern", "pattern": r"\d+ owls"}, Exchange("p", "i saw 12 owls"), 1.0),
        ({"rule": "pattern", "pattern": r"\d+ owls"}, Exchange("p", "i saw owls"), 0.0),
        ({"rule": "repetition"}, Exchange("p", "a b c a b c"), -0.25),
        ({"rule": "repetition"}, Exchange("p", "a b"), 0.0),
    ],
)
def test_rules_read_what_they_say(rule: dict[str, object], exchange: Exchange, value: float) -> None:
    assert rule_of(SourceConfig.model_validate({"name": "r", "kind": "rule", **rule}))(exchange) == value


def test_repetition_is_one_less_the_share_of_new_runs() -> None:
    assert repetition("x x x x x x") == 0.75
    assert repetition("a b c d e f") == 0


def test_a_pattern_that_is_no_regular_expression_names_its_source() -> None:
    source = SourceConfig(name="digits", kind="rule", rule="pattern", pattern="(")
    with pytest.raises(ConfigError, match=r"reward\.sources digits\.pattern: is no regular expression"):
        rule_of(source)


# --- functions -------------------------------------------------------------------------------------------------------

FILE = """
from dataclasses import dataclass
import asyncio

@dataclass
class Word:
    text: str

def words(prompts, completions):
    return [len(Word(text).text.split()) for text in completions]

def one(prompt):
    return 1.0

def three(prompts, completions, answers):
    return []

def named(*, prompts, completions):
    return []

def more(prompts, completions, scale=2.0, **rest):
    return [scale for _ in completions]

async def later(prompts, completions):
    return []

class Sort:
    def __init__(self, prompts, completions):
        pass

number = 3
"""


def test_a_function_comes_from_a_file_or_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own_rewards.py"
    path.write_text(FILE)
    function = load_function("w", f"{path}:words")
    assert call("w", function, ["p", "p"], ["a b", "c"]) == [2.0, 1.0]
    assert call("m", load_function("m", f"{path}:more"), ["p"], ["a"]) == [2.0]
    monkeypatch.syspath_prepend(tmp_path)
    assert call("w", load_function("w", "own_rewards:words"), ["p"], ["a b c"]) == [3.0]
    sys.modules.pop("own_rewards")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("words", "must be module:name or file.py:name"),
        ("FILE:absent", "has no absent; it has later, more, named, one, three"),
        ("FILE:one", r"one\(prompt\) does not take these arguments"),
        ("FILE:named", "does not take these arguments"),
        ("FILE:later", "is asynchronous"),
        ("FILE:Sort", "is a class"),
        ("FILE:number", "is a int and cannot be called"),
        ("nowhere/x.py:f", "nowhere/x.py: no such file"),
        ("no_such_module:f", "module no_such_module cannot be imported"),
        ("BROKEN:f", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_a_reward_is_refused_by_the_sources_name(tmp_path: Path, spec: str, said: str) -> None:
    (tmp_path / "f.py").write_text(FILE)
    (tmp_path / "b.py").write_text("1 / 0\n")
    spec = spec.replace("FILE", str(tmp_path / "f.py")).replace("BROKEN", str(tmp_path / "b.py"))
    with pytest.raises(ConfigError, match=said) as caught:
        load_function("mine", spec)
    assert caught.value.field == "reward.sources mine.function"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "returned 1 numbers for 2 completions"),
        ([1.0, float("nan")], "returned nan for completion 1: a reward must be finite"),
        (None, "must return one number per completion, returned NoneType"),
        (["good", "bad"], "must return one number per completion, returned list"),
        (KeyError("k"), "raised KeyError: 'k'"),
    ],
)
def test_what_a_function_does_wrong_names_the_source(returned: object, said: str) -> None:
    def function(prompts: object, completions: object) -> object:
        if isinstance(returned, Exception):
            raise returned
        return returned

    with pytest.raises(SourceFailed, match="reward source mine " + said):
        call("mine", function, ["p", "p"], ["a", "b"])  # type: ignore[arg-type]


def test_the_digest_of_a_function_sees_its_file_change(tmp_path: Path) -> None:
    path = tmp_path / "f.py"
    path.write_text("def f(p, c): return [1.0]\n")
    before = source_digest(f"{path}:f")
    path.write_text("def f(p, c): return [2.0]\n")
    assert source_digest(f"{path}:f") != before


COLUMNS = """
def right(prompts, completions, answer):
    return [float(one == text) for one, text in zip(answer, completions)]

def lenient(prompts, completions, answer=None, *, weight=None):
    return [float((one == text) * (w or 1)) for one, text, w in zip(answer or [], completions, weight or [None] * 9)]

def everything(prompts, completions, **columns):
    return [float(len(columns))] * len(prompts)
"""


def test_a_function_gets_the_columns_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(COLUMNS)
    rows = [{"answer": "4", "topic": "sums"}, {"topic": "colours"}]
    texts = ["p", "q"], ["4", "red"]
    right, lenient, everything = (
        load_function("f", f"{tmp_path}/f.py:{n}") for n in ("right", "lenient", "everything")
    )
    assert call("f", right, *texts, rows) == [1.0, 0.0]
    assert call("f", lenient, *texts, [row | {"weight": 3} for row in rows]) == [3.0, 0.0]
    assert call("f", everything, *texts, rows) == [2.0, 2.0]
    with pytest.raises(SourceFailed, match="asks for the column answer, which no prompt here has: the rows have topic"):
        call("f", right, *texts, [{"topic": "sums"}] * 2)
    with pytest.raises(SourceFailed, match="the rows have no further columns"):
        call("f", right, *texts)
