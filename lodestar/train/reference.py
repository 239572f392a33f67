"""Log-probs of whole completions under the reference model: asked of its servers once, and kept by digest.

A training that needs log π_ref of fixed completions needs one number of each, whatever it does with them. They are kept
in ``FOLDER/DIGEST.jsonl``, where the digest is that of the reference's weights; a line is

    {"row": sha256 of the token ids and of where the prompt ends, "logprob": nats}

so a stage that is killed asks for the rest, and another β, loss or epoch asks for nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from lodestar.asking import CALL_SECONDS, ROWS_PER_CALL, patiently
from lodestar.client import AsyncReferenceClient
from lodestar.errors import DataError, FailedPrecondition
from lodestar.files import append, json_line, numbered_rows
from lodestar.packing import batches_of
from lodestar.records import LogProbs, ModelDescription, Scored
from lodestar.train.progress import Progress

CALLS_PER_SERVER = 2
"""In flight: one is computed while the next is on its way."""


class ReferenceLogProbs:
    """``ReferenceLogProbs(["localhost:50053"], Path("runs/mine/cache/reference")).of(rows, tokenizer, progress)``."""

    def __init__(
        self, addresses: Sequence[str], folder: Path, *, call_tokens: int = 16_384, alone: bool = False,
        tls: Path | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            addresses: reference servers.
            folder: where answers are kept.
            call_tokens: tokens that one call holds at most.
            alone: the servers compute every sequence by itself (``deterministic``). Their answers differ by rounding
                from those of a batch, and are kept apart.
            tls: as for every client.
        """
        self._addresses = addresses
        self._folder = folder
        self._call_tokens = call_tokens
        self._alone = alone
        self._tls = tls

    def of(self, rows: Sequence[Scored], tokenizer_hash: str, progress: Progress) -> list[float]:
        """Σ_t log π_ref(token t) of each row's completion, in nats, at temperature 1.

        ``progress`` advances by one for each different row.

        Raises:
            FailedPrecondition: the reference has another tokenizer, a context too short for a row, or two servers hold
                different weights.
            DataError: the file of kept answers is damaged.
            Unavailable: a server stayed away.
        """
        return asyncio.run(self._of(rows, tokenizer_hash, progress))

    async def _of(self, rows: Sequence[Scored], tokenizer_hash: str, progress: Progress) -> list[float]:
        async with AsyncReferenceClient(self._addresses, timeout=CALL_SECONDS, tls=self._tls) as reference:
            served = await patiently(reference.describe)
            _check(served, rows, tokenizer_hash)
            digest = served.model.version.digest
            path = self._folder / f"{digest}{'-alone' if self._alone else ''}.jsonl"
            known = _read(path)
            wanted = {row_digest(row): row for row in rows}
            missing = [row for key, row in wanted.items() if key not in known]
            progress.advance(len(wanted) - len(missing))
            calls = _calls(missing, self._call_tokens)
            while group := list(islice(calls, CALLS_PER_SERVER * len(self._addresses))):
                ask = partial(reference.logprobs, temperature=1.0, tokenizer_hash=tokenizer_hash)
                asked = [patiently(partial(ask, part)) for part in group]
                for part, answer in zip(group, await asyncio.gather(*asked), strict=True):
                    found = _sums(part, answer, digest)
                    append(path, "".join(json_line({"row": k, "logprob": v}) for k, v in found.items()))
                    known.update(found)
                    progress.advance(len(part))
            return [known[row_digest(row)] for row in rows]


def row_digest(row: Scored) -> str:
    """Hex sha256 of a row's token ids and of where its prompt ends."""
    return hashlib.sha256(f"{row.prompt_tokens}:{','.join(map(str, row.token_ids))}".encode()).hexdigest()


def _check(served: ModelDescription, rows: Sequence[Scored], tokenizer_hash: str) -> None:
    name, theirs = served.model.name, served.model.tokenizer_hash
    if theirs != tokenizer_hash:
        raise FailedPrecondition(
            f"reference: {name} has another tokenizer ({theirs[:12]}) than the policy ({tokenizer_hash[:12]}): their "
            "log-probs are not of the same tokens; take a reference of the policy's family (use: {reference: …})"
        )
    longest = max(len(row.token_ids) for row in rows)
    if longest > served.context_tokens:
        raise FailedPrecondition(
            f"reference: {name} holds {served.context_tokens} tokens, and the longest row has {longest}; "
            "leave longer rows out (data.max_tokens)"
        )


def _calls(rows: Sequence[Scored], call_tokens: int) -> Iterator[list[Scored]]:
    """Rows of like length together, in calls of a bounded number of tokens and rows."""
    by_length = sorted(rows, key=lambda row: len(row.token_ids))
    for batch in batches_of(by_length, call_tokens, lambda row: len(row.token_ids)):
        for first in range(0, len(batch), ROWS_PER_CALL):
            yield batch[first : first + ROWS_PER_CALL]


def _sums(rows: Sequence[Scored], answer: LogProbs, digest: str) -> Mapping[str, float]:
    if answer.model.version.digest != digest:
        raise FailedPrecondition(
            f"reference: one server holds weights {answer.model.version.digest[:12]}, another {digest[:12]}; "
            "serve one model by all of them"
        )
    return {row_digest(row): math.fsum(one.logprobs) for row, one in zip(rows, answer.sequences, strict=True)}


def _read(path: Path) -> dict[str, float]:
    """What is kept; a last line that a killed process began is cut off."""
    if not path.exists():
        return {}
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    found: dict[str, float] = {}
    for number, row in numbered_rows(path):
        key, value = row.get("row"), row.get("logprob")
        if not isinstance(key, str) or not isinstance(value, float):
            raise DataError(path, "is no kept log-prob; delete the file, and the servers are asked again", line=number)
        found[key] = value
    return found
