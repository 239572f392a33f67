"""Constitutions: the one that ships, and files that cannot be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import chisquare

from lodestar.constitution import drawn, principles, read_constitution
from lodestar.errors import ConfigError

WHOLE = "harmless: [{name: a, critique: c, revision: r}]\n"


def test_the_one_that_ships_judges_and_revises_by_both_aspects() -> None:
    ours = read_constitution(None, "x")
    assert len(ours.harmless) >= 6
    assert len(ours.helpful) >= 5
    for aspect in ("harmless", "helpful"):
        assert principles(None, aspect, "x", choosing=True) == ours.of(aspect)


def test_every_principle_is_as_likely_as_any_other_and_the_seed_decides() -> None:
    of = principles(None, "harmless", "x")
    names = [drawn(of, 3, f"p{i}/0").name for i in range(4000)]
    assert names == [drawn(of, 3, f"p{i}/0").name for i in range(4000)]
    assert names != [drawn(of, 4, f"p{i}/0").name for i in range(4000)]
    assert chisquare(list(Counter(names).values())).pvalue > 0.001
    assert len(set(names)) == len(of)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("harmless: [{name: a, critique: ' ', revision: r}]", r"harmless\.0\.critique: .* at least 1 character"),
        ("harmless: [{name: a, critique: c}]", r"harmless\.0\.revision: .*required"),
        ("harmless: [{name: a, critique: c, revison: r}]", r"harmless\.0\.revison: unknown option"),
        ("harmles: [{name: a, critique: c, revision: r}]", r"harmles: unknown option; did you mean harmless\?"),
        ("harmless: []", "holds no principles"),
        ("{}", "holds no principles"),
        ("- a\n", "holds no mapping"),
        (WHOLE + "helpful: [{name: a, critique: c, revision: r}]", "a: each principle needs a name of its own"),
        ("harmless: [", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "law.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        principles(str(path), "harmless", "stages.critique")


def test_an_aspect_without_principles_and_one_that_cannot_choose_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "law.yaml"
    path.write_text(WHOLE)
    with pytest.raises(ConfigError, match=r"stages\.critique\.constitution: .*law\.yaml has no helpful principles"):
        principles(str(path), "helpful", "stages.critique")
    assert [one.name for one in principles(str(path), "harmless", "x")] == ["a"]
    with pytest.raises(ConfigError, match="a says nothing of choosing between two replies"):
        principles(str(path), "harmless", "x", choosing=True)
    with pytest.raises(ConfigError, match="no such file"):
        read_constitution(str(tmp_path / "none.yaml"), "x")
