"""A table of comparisons between named items, and how it is read from CSV or JSONL.

    first,second,label          first,second,winner          first,second,label,count
    ppo-40,sft,1                ppo-40,sft,ppo-40            ppo-40,sft,1,17
    sft,ppo-40,0.5              sft,ppo-40,tie               ppo-40,sft,0,4

``label`` is the probability that the first is better (1, 0, 0.5 for a tie, anything between for a share of votes);
``winner`` names it in words. ``count`` repeats a row: a label 0.7 with count 10 is the same ten votes as rows 1 with
count 7 and 0 with count 3. Other columns are left alone. Votes of Chatbot Arena and MT-bench (model_a, model_b and a
winner) are read as they are published.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lodestar.data.files import BadRows
from lodestar.data.formats.arena import is_vote, vote_label
from lodestar.data.objects import read_objects
from lodestar.errors import DataError
from lodestar.files import open_text

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TIES = frozenset({"tie", "ties", "draw", "equal", "both", "none"})
"""What stands for a tie in the column ``winner``, in any case."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Comparisons, equal ones counted together. C runs over kinds of comparison, K over items.

    ``Table.of([("a", "b", 1.0), ("a", "b", 0.5)])`` has the items a and b and two kinds of comparison.
    """

    items: tuple[str, ...]
    """Names of the K items, in the order of first appearance."""
    first_C: Ints
    """Item number of the first."""
    second_C: Ints
    """Item number of the second; never the first's."""
    label_C: Floats
    """Share of the vote that the first got, 0 … 1."""
    count_C: Floats
    """How often this was said, > 0."""

    @staticmethod
    def of(comparisons: Iterable[tuple[str, str, float] | tuple[str, str, float, float]]) -> Table:
        """The table of (first, second, label) or (first, second, label, count) rows."""
        number: dict[str, int] = {}
        counts: Counter[tuple[int, int, float]] = Counter()
        for first, second, label, *count in comparisons:
            one, other = (number.setdefault(name, len(number)) for name in (first, second))
            key = (one, other, label) if one < other else (other, one, 1 - label)
            counts[key] += count[0] if count else 1  # type: ignore[assignment]  # counts may be fractions
        rows = sorted(counts.items())
        return Table(
            tuple(number),
            np.array([key[0] for key, _ in rows], dtype=np.int64),
            np.array([key[1] for key, _ in rows], dtype=np.int64),
            np.array([key[2] for key, _ in rows], dtype=np.float64),
            np.array([count for _, count in rows], dtype=np.float64),
        )

    @property
    def comparisons(self) -> float:
        """All of them."""
        return float(self.count_C.sum())

    @property
    def ties(self) -> float:
        """Comparisons with label 0.5."""
        return float(self.count_C[self.label_C == 0.5].sum())

    def votes_KK(self) -> Floats:
        """Votes that each row's item got against each column's; a tie is half a vote each."""
        votes_KK = np.zeros((len(self.items), len(self.items)))
        np.add.at(votes_KK, (self.first_C, self.second_C), self.count_C * self.label_C)
        np.add.at(votes_KK, (self.second_C, self.first_C), self.count_C * (1 - self.label_C))
        return votes_KK

    def record(self) -> list[tuple[float, float, float]]:
        """Wins, ties and losses of every item; a label that is no tie is a share of the votes."""
        tied_C = self.label_C == 0.5
        counted = np.zeros((len(self.items), 3))
        for items_C, share_C in ((self.first_C, self.label_C), (self.second_C, 1 - self.label_C)):
            outcomes_C3 = np.where(
                tied_C[:, None], [[0.0, 1.0, 0.0]], np.stack((share_C, 0 * share_C, 1 - share_C), axis=1)
            )
            np.add.at(counted, items_C, self.count_C[:, None] * outcomes_C3)
        return [(float(wins), float(ties), float(losses)) for wins, ties, losses in counted]


def read_table(path: Path) -> Table:
    """The comparisons of a .csv, .tsv, .jsonl or .json-lines file.

    Raises:
        DataError: no such file, no rows, or a row that is no comparison; the message has file:line and the field.
    """
    if not path.is_file():
        raise DataError(path, "no such file")
    rows = _csv_rows(path) if path.suffix.lower() in (".csv", ".tsv") else _json_rows(path)
    comparisons = [_comparison(path, line, row) for line, row in rows]
    if not comparisons:
        raise DataError(path, "has no rows; a row is first,second,label")
    return Table.of(comparisons)


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with open_text(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            names = reader.fieldnames or []
            own = {"first", "second"} <= set(names) and {"label", "winner"} & set(names)
            if not own and not is_vote(names):
                raise DataError(
                    path, f"the header must name first, second, and label or winner; it is {','.join(names)!r}", 1
                )
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        path, f"has another number of fields than the header's {len(names)}", reader.line_num
                    )
                yield reader.line_num, {name: value for name, value in row.items() if value != ""}
    except csv.Error as error:
        raise DataError(path, f"is not CSV: {error}", reader.line_num) from None


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, row in read_objects(path, BadRows(strict=True)):
        yield number, {name: value for name, value in row.items() if value is not None}


def _comparison(path: Path, line: int, row: Mapping[str, Any]) -> tuple[str, str, float, float]:
    if is_vote(row):
        try:
            row = {"first": row["model_a"], "second": row["model_b"], "label": vote_label(row)}
        except ValueError as error:
            raise DataError(path, str(error), line) from error
    names = []
    for field in ("first", "second"):
        value = row.get(field)
        if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
            raise DataError(path, f"{field}: must name an item, is {value!r}", line)
        names.append(str(value).strip())
    first, second = names
    if first == second:
        raise DataError(path, f"second: {second} is compared with itself", line)
    if ("label" in row) == ("winner" in row):
        both = "both are given" if "label" in row else "neither is given"
        raise DataError(path, f"label, winner: {both}; a row says who won in one of them", line)
    label = _label(path, line, row["label"]) if "label" in row else _winner(path, line, row["winner"], first, second)
    count = _number(path, line, "count", row.get("count", 1))
    if count <= 0:
        raise DataError(path, f"count: must be above 0, is {count:g}", line)
    return first, second, label, count


def _label(path: Path, line: int, value: Any) -> float:
    label = _number(path, line, "label", value)
    if not 0 <= label <= 1:
        raise DataError(path, f"label: must be 0 … 1, the probability that the first is better, is {label:g}", line)
    return label


def _winner(path: Path, line: int, value: Any, first: str, second: str) -> float:
    name = str(value).strip()
    if name in (first, second):
        return float(name == first)
    if name.lower() in TIES:
        return 0.5
    raise DataError(path, f"winner: must be {first}, {second} or tie, is {value!r}", line)


def _number(path: Path, line: int, field: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(path, f"{field}: must be a number, is {value!r}", line)
    return number
