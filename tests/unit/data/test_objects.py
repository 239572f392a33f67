"""Rows of files of every kind: what ends a line, what a cell is, and what is said of broken ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestar.data.files import BadRows
from lodestar.data.objects import read_objects
from lodestar.errors import DataError

ROWS = [{"prompt": "a\u2028b\u0085c\x0bd", "label": 1}, {"prompt": "é", "label": 0}]


def _read(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_objects(path, BadRows(strict=True))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_separators_are_characters_and_order_marks_are_not(tmp_path: Path, name: str, encoding: str) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    text = json.dumps(ROWS, ensure_ascii=False) if name == "a.json" else lines
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wb") as file:
        file.write(text.encode(encoding))
    assert _read(tmp_path / name) == ROWS


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"data": ROWS, "version": 1}, indent=1),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "\n".join(map(json.dumps, ROWS)),
    ],
)
def test_json_may_be_laid_out_in_any_way(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert _read(tmp_path / "a.json") == ROWS


def test_an_object_that_is_one_row_is_not_taken_apart(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(row))
    assert _read(tmp_path / "a.json") == [row]


def test_cells_keep_every_character_and_empty_ones_are_absent(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ufeffprompt,chosen,note\r\n"a\u2028b\n\x0b",x,\r\n[1],"{y}",z\r\n', newline="")
    assert _read(tmp_path / "a.csv") == [
        {"prompt": "a\u2028b\n\x0b", "chosen": "x"},
        {"prompt": "[1]", "chosen": "{y}", "note": "z"},
    ]


def test_messages_in_a_cell_are_messages(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('messages\tprompt\n[{"role": "user"}]\t[{"role": "user"}]\n')
    assert _read(tmp_path / "a.tsv") == [{"messages": [{"role": "user"}], "prompt": [{"role": "user"}]}]


def test_semicolons_separate_where_the_header_has_no_comma(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt;label\nq, r;0,5\n")
    assert _read(tmp_path / "a.csv") == [{"prompt": "q, r", "label": "0,5"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,b\n1,2,3\n", "a.csv:2: has 3 cells, the header has 2 columns"),
        ("a.csv", "a,a\n1,2\n", "a.csv:1: the header must name every column once"),
        ("a.jsonl", "[" * 100_000 + "\n", "a.jsonl:1: is not JSON: it is nested too deep"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", '{"a": 1}\n{"b": \n', "a.json:2: is not JSON"),
        ("a.parquet", "no table", "a.parquet: cannot be read as parquet"),
        ("a.arrow", "no table", "a.arrow: cannot be read as arrow"),
    ],
)
def test_broken_files_say_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        _read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_tables_are_rows(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": [{"role": "user", "content": "q"}], "n": 1.5, "gone": None}]
    table = pa.Table.from_pylist(rows)
    if name == "a.parquet":
        pa.parquet.write_table(table, tmp_path / name)
    else:
        writer = pa.ipc.new_file if name == "a.feather" else pa.ipc.new_stream
        with pa.OSFile(str(tmp_path / name), "wb") as sink, writer(sink, table.schema) as file:
            file.write_table(table)
    assert _read(tmp_path / name) == [{"prompt": [{"role": "user", "content": "q"}], "n": 1.5}]


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), min_size=1), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_json_lines_give_any_row_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _read(path) == rows
