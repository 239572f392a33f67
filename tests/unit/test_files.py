"""Files that are whole or absent, digests that see every change, and lines that end where JSON Lines end."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lodestar.errors import DataError
from lodestar.files import (
    append,
    digest,
    full_disk,
    numbered_rows,
    open_text,
    read_json,
    read_jsonl,
    remove,
    remove_leftovers,
    replacing,
    write_atomically,
    write_jsonl,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from lodestar import files
real, left = {call}, int(sys.argv[2])
def call(*args, **options):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return real(*args, **options)
{call} = call
with files.replacing(Path(sys.argv[1])) as folder:
    folder.mkdir()
    for name in "ab":
        (folder / name).write_text("new")
"""


@pytest.mark.parametrize("content", ["žluťoučký\n", b"\x00\xff"])
def test_a_file_is_replaced_and_no_temporary_is_left(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "a.txt"
    for _ in range(2):
        write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(path.parent.iterdir()) == [path]


def test_a_secret_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    write_atomically(tmp_path / "key", "s", secret=True)
    write_atomically(tmp_path / "certificate", "s")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "certificate").stat().st_mode) & 0o444 == 0o444


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with replacing(path) as folder:
        folder.mkdir()
        (folder / "old").touch()
    with replacing(tmp_path / "other") as folder:
        folder.mkdir()
    with pytest.raises(FileExistsError), replacing(path) as folder:
        (tmp_path / "other").rename(folder).mkdir()
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")] == ["model", "model/old"]


@pytest.mark.parametrize("call", ["os.fsync", "Path.rename", "Path.replace"])
def test_a_folder_is_whole_or_absent_whenever_its_writer_is_killed(tmp_path: Path, call: str) -> None:
    path, seen = tmp_path / "model", set()
    for calls in range(10):
        if path.exists():
            remove(path)
        write_atomically(path / "a", "old")
        before = digest(path)
        ended = subprocess.run([sys.executable, "-c", KILLED.format(call=call), path, str(calls)])
        remove_leftovers(tmp_path)
        assert [file for file in tmp_path.iterdir() if file != path] == []
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
        if not path.exists():
            seen.add("absent")
        elif digest(path) == before:
            seen.add("old")
        else:
            assert (path / "a").read_text() == (path / "b").read_text() == "new"
            seen.add("new")
    assert ended.returncode == 0
    assert seen == {"os.fsync": {"old", "new"}, "Path.rename": {"old"}, "Path.replace": {"absent"}}[call]


def test_everything_written_is_fsynced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "model").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "model") as folder:
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "file").touch()
    assert synced == [
        *((str(path), False) for path in (folder / "deep", folder / "deep" / "file", folder)),
        (str(tmp_path), True),
    ]


def test_leftovers_of_other_names_stay(tmp_path: Path) -> None:
    for name in (".a.00000000.partial", ".b.00000000.partial", "a.partial"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.00000000.partial", "a.partial"]


def test_what_is_appended_stands_at_the_end(tmp_path: Path) -> None:
    append(tmp_path / "a", "1\n")
    append(tmp_path / "a", "2\n")
    assert (tmp_path / "a").read_text() == "1\n2\n"


def test_a_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x" / "b.gz", gzip.compress(b"1"))
    write_atomically(tmp_path / "x" / "deep" / "a", "2")
    names = ["b.gz", "deep/a"]
    listing = subprocess.run(["sha256sum", *names], cwd=tmp_path / "x", capture_output=True, check=True).stdout
    assert digest(tmp_path / "x") == hashlib.sha256(listing).hexdigest()
    assert digest(tmp_path / "x" / "b.gz") == listing.split()[0].decode()


def test_a_digest_sees_names_contents_and_where_one_ends(tmp_path: Path) -> None:
    trees = [{"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "1", "b": ""}, {"a": "", "b": "1"}, {"d/a": "1"}, {"a": ""}, {}]
    digests = set()
    for number, tree in enumerate(trees):
        (tmp_path / str(number)).mkdir()
        for name, content in tree.items():
            write_atomically(tmp_path / str(number) / name, content)
        digests.add(digest(tmp_path / str(number)))
    assert len(digests) == len(trees)


def test_nothing_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sft: no such file or folder"):
        digest(tmp_path / "sft")


STRANGE = [{"text": "line\u2028separator\u0085next\x0b\x0c\x1c"}, {"text": "a\r\nb\rc"}]


def test_lines_end_at_a_newline_alone(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", STRANGE)
    assert read_jsonl(tmp_path / "a.jsonl") == STRANGE
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == len(STRANGE)
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress((tmp_path / "a.jsonl").read_bytes().replace(b"\n", b"\r\n\r\n"))
    )
    assert list(numbered_rows(tmp_path / "b.jsonl.gz")) == [(1, STRANGE[0]), (3, STRANGE[1])]
    (tmp_path / "c.jsonl").write_bytes(b'{"a": 1}\r{"a": 2}\n')
    with pytest.raises(DataError, match=r"c\.jsonl:1: is not JSON"):
        read_jsonl(tmp_path / "c.jsonl")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_part_of_the_text(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"ä": "\u2028"}\r\n\n{"b": 1}\n'.encode(encoding))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert list(numbered_rows(tmp_path / name)) == [(1, {"ä": "\u2028"}), (3, {"b": 1})]
    (tmp_path / "a.json").write_bytes('{\n"ä": 1}'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"ä": 1}
    with open_text(tmp_path / "a.json") as text:
        assert text.read() == '{\n"ä": 1}'


def test_a_broken_utf16_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00\xd8\x00\xd8")
    with pytest.raises(DataError, match=r"a\.jsonl: is not UTF-16-LE text: illegal UTF-16 surrogate"):
        read_jsonl(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"a": }', "is not JSON: Expecting value at column 7"),
        (b"[1]", "must be an object {…}, is list"),
        (b'{"a": "\xff"}', "is not UTF-8 text: invalid start byte at byte 7"),
        (b'{"a": ' + b"[" * 200_000, "is not JSON: it is nested too deep"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "is not JSON: Exceeds the limit"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, sentence: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"b": 0}\n\n' + line + b'\n{"b": 1}')
    with pytest.raises(DataError) as raised:
        read_jsonl(path)
    assert str(raised.value).startswith(f"{path}:3: {sentence}")
    refused: list[DataError] = []
    assert list(numbered_rows(path, refused.append)) == [(1, {"b": 0}), (4, {"b": 1})]
    assert [str(error) for error in refused] == [str(raised.value)]


def test_a_json_file_is_an_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{\n"a": 1\n}')
    assert read_json(path) == {"a": 1}
    path.write_text('{\n"a"\n}')
    with pytest.raises(DataError, match=r"a\.json:3: is not JSON: Expecting ':' delimiter"):
        read_json(path)
    path.write_text("[]")
    with pytest.raises(DataError, match=r"a\.json: must be an object"):
        read_json(path)
    with pytest.raises(DataError, match=r"b\.json: no such file"):
        read_json(tmp_path / "b.json")


def test_leftovers_below_a_folder_go_too_when_that_is_asked(tmp_path: Path) -> None:
    left = tmp_path / "feedback" / ".train.jsonl.1f00ba42.partial"
    left.parent.mkdir()
    left.write_text("{")
    remove_leftovers(tmp_path)
    assert left.exists()
    remove_leftovers(tmp_path, below=True)
    assert not left.exists()
    assert left.parent.exists()


def test_a_full_disk_is_found_behind_other_errors_and_nothing_else_is_taken_for_one() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl")
    wrapped = ValueError("while publishing")
    wrapped.__cause__ = full
    for error in (full, wrapped, BaseExceptionGroup("tasks", [KeyError("a"), full])):
        said = full_disk(error)
        assert said is not None
        assert "runs/x/metrics.jsonl could not be written" in str(said)
    assert full_disk(RuntimeError("I/O error: No space left on device (os error 28)")) is not None
    assert full_disk(OSError(errno.EACCES, "Permission denied")) is None
    assert full_disk(ValueError("x")) is None
