"""Files that appear whole or not at all, their digests, and lines of JSON.

What is written goes to a temporary name beside its place (``.NAME.1f00ba42.partial``), is fsynced, renamed, and its
folder fsynced: a reader sees the old or the new, and so does whoever comes after a power cut. A killed process may
leave its temporary behind; :func:`remove_leftovers` is for the one that goes on in its stead.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import hashlib
import io
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO, cast

from lodestar.errors import DataError, LodestarError


def full_disk(error: BaseException) -> LodestarError | None:
    """The sentence for an error whose reason is a full disk or quota, wherever it came up; None for any other."""
    seen: BaseException | None = error
    while seen is not None:
        by_number = isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT)
        if by_number or f"os error {errno.ENOSPC})" in str(seen):  # safetensors raises a type of its own
            name = getattr(seen, "filename", None)
            return LodestarError(
                f"the disk is full{f': {name} could not be written' if name else ''} ({seen}). What was finished is "
                "intact: free space, and --resume goes on"
            )
        if isinstance(seen, BaseExceptionGroup):
            return next((found for one in seen.exceptions if (found := full_disk(one))), None)
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A free name beside ``path``, for a file or folder to be made under; at the end it takes the place of ``path``.

    An exception leaves what was there. Between the two renames that replace a folder, ``path`` is missing.

    Args:
        durable: fsync all of it. Leave it out only for large files that are verified whenever they are read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        if durable:
            for made in (*sorted(temporary.rglob("*")), temporary):
                sync(made)
        if temporary.is_dir() and path.exists():
            remove(path)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    finally:
        _delete(temporary)


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True, secret: bool = False) -> None:
    """Writes a file, text as UTF-8. A ``secret`` one can be read by its owner alone, from the first byte on."""
    with replacing(path, durable=durable) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)


def append(path: Path, content: str) -> None:
    """Appends to a file, made if need be; durable once this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(content.encode())
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def sync(path: Path) -> None:
    """fsync of one file, or of a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Deletes a folder or file; killed half-way, it leaves nothing that could be taken for a whole one."""
    hidden = _temporary(path)
    path.rename(hidden)
    _delete(hidden)


def remove_leftovers(folder: Path, name: str = "*", *, below: bool = False) -> None:
    """Deletes the temporaries that killed writers of ``folder/name`` left; nobody may be writing it now.

    Args:
        below: those in folders below it too.
    """
    for leftover in list((folder.rglob if below else folder.glob)(f".{name}.*.partial")):
        _delete(leftover)


def digest(path: Path) -> str:
    """Hex sha256 of a file, or of all names and contents below a folder; empty folders do not count.

    A folder's is that of the lines ``sha256  relative/name``, in the names' byte order.

    Raises:
        DataError: there is no such file or folder.
    """
    if path.is_dir():
        files = sorted((os.fsencode(file.relative_to(path)), file) for file in path.rglob("*") if file.is_file())
        lines = (f"{digest(file)}  ".encode() + name + b"\n" for name, file in files)
        return hashlib.sha256(b"".join(lines)).hexdigest()
    if not path.exists():
        raise DataError(path, "no such file or folder")
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def open_binary(path: Path, *, missing: str = "no such file") -> Iterator[BinaryIO]:
    """A file, or what a .gz holds, whose troubles are told by its name.

    Raises:
        DataError: the file is missing (``missing`` is said), unreadable, or ends inside a compressed block.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield cast(BinaryIO, file)
    except FileNotFoundError:
        raise DataError(path, missing) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"cannot be read: {error}") from error


@contextmanager
def open_text(
    path: Path, *, encoding: str | None = None, newline: str | None = None, missing: str = "no such file"
) -> Iterator[TextIO]:
    """The text of :func:`open_binary`; raises as that does, and when it is no text of the encoding.

    Args:
        encoding: unset takes what the file's byte order mark says, which is left out: UTF-16 (as Windows programs write
            it), else UTF-8.
    """
    try:
        with open_binary(path, missing=missing) as file:
            found = encoding or ("utf-16" if _is_utf16(file) else "utf-8-sig")
            with io.TextIOWrapper(file, found, newline=newline) as text:
                yield text
    except UnicodeDecodeError as error:
        raise DataError(path, f"is not {error.encoding.upper()} text: {error.reason} at byte {error.start}") from error


def numbered_rows(
    path: Path, refuse: Callable[[DataError], None] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a .jsonl or .jsonl.gz file with their line numbers, from 1; blank lines are skipped.

    A line ends at ``\\n`` and nowhere else: U+2028 and the like may stand inside a string. A byte order mark is left
    out; one of UTF-16 says so.

    Args:
        refuse: takes the error of a line that is no object, which is then left out; unset raises it.

    Raises:
        DataError: the file is missing or unreadable; a bad line, unless ``refuse`` took it.
    """
    with _byte_lines(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = _object(path, number, line)
            except DataError as error:
                (refuse or _raise)(error)
            else:
                yield number, row


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All of :func:`numbered_rows`, without their numbers; raises at a bad line."""
    return [row for _, row in numbered_rows(path)]


def read_json(path: Path) -> dict[str, Any]:
    """The object that a .json file holds.

    Raises:
        DataError: the file is missing, unreadable, or holds no object.
    """
    with _byte_lines(path) as lines:
        return _object(path, None, b"".join(lines))


def json_line(row: Mapping[str, Any]) -> str:
    """A row as a line, its ``\\n`` included."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One object per line; the file appears whole or not at all."""
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8", newline="\n") as file:
        file.writelines(map(json_line, rows))


def _is_utf16(file: BinaryIO) -> bool:
    """Whether a file that is read from its beginning has such a byte order mark; its place stays where it is."""
    return cast(io.BufferedReader, file).peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextmanager
def _byte_lines(path: Path) -> Iterator[Iterator[bytes]]:
    """A file's lines in UTF-8, without a byte order mark; raises as open_text, but for what is no UTF-8."""
    with open_binary(path) as file:
        if not _is_utf16(file):
            if cast(io.BufferedReader, file).peek(3)[:3] == codecs.BOM_UTF8:
                file.read(3)
            yield iter(file)
            return
    with open_text(path, newline="\n") as text:
        yield (line.encode() for line in text)


def _object(path: Path, line: int | None, content: bytes) -> dict[str, Any]:
    try:
        row = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise DataError(path, f"is not UTF-8 text: {error.reason} at byte {error.start}", line) from None
    except json.JSONDecodeError as error:
        raise DataError(path, f"is not JSON: {error.msg} at column {error.colno}", line or error.lineno) from None
    except RecursionError:
        raise DataError(path, "is not JSON: it is nested too deep", line) from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(path, f"is not JSON: {error}", line) from None
    if not isinstance(row, dict):
        raise DataError(path, f"must be an object {{…}}, is {type(row).__name__}", line)
    return row


def _raise(error: DataError) -> NoReturn:
    raise error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
