"""A stage that asks people over TLS: the run's own page, and a service elsewhere with a certificate or a token."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lodestar.errors import LodestarError, PermissionDenied, Unauthenticated
from lodestar.feedback import AsyncFeedbackClient
from lodestar.labelling import people
from lodestar.labelling.options import PeopleOptions
from lodestar.labelling.people import People, campaign_of
from lodestar.labelling.port import Asked, Question
from lodestar.rpc.access import Role, add_token
from lodestar.rpc.certificates import Authority
from tests.services.feedback.processes import Join, Running, answer

QUESTION = Question("0.0.0-0", "which ?", ("good", "bad"))


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """Of the service, the stage and a caller, and the authority alone."""
    authority = Authority.create()
    for name, role in (("feedback", "worker"), ("stage", "worker"), ("caller", "caller")):
        authority.issue(tmp_path / "certs" / name, role, name, days=1)
    (tmp_path / "certs" / "outside").mkdir()
    (tmp_path / "certs" / "outside" / "ca.crt").write_bytes(authority.pem)
    return tmp_path / "certs"


@pytest.fixture
def guarded(certs: Path, start: Callable[..., Running], tmp_path: Path) -> tuple[Running, str, str]:
    """A service that wants certificates, and tokens at its callers' port; a worker's token and a caller's."""
    tokens = tmp_path / "tokens"
    worker, caller = (add_token(tokens, f"the-{role}", role) for role in (Role.WORKER, Role.CALLER))
    listening = {"tls": certs / "feedback", "tokens": tokens, "caller_port": 0, "health_port": 0}
    return start(listening=listening), worker, caller


def label(options: PeopleOptions, folder: Path, **of_the_run: Any) -> Any:
    """What came of asking."""
    try:
        return People(Asked(0, None, folder, people=options, of="r.label", **of_the_run)).label([QUESTION], print)
    except LodestarError as error:
        return error


@pytest.mark.parametrize("how", ["own", "certificate", "token"])
def test_people_are_asked_over_tls(
    how: str,
    guarded: tuple[Running, str, str],
    certs: Path,
    join: Join,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(people, "AGAIN_SECONDS", 0.05)
    running, token, _ = guarded
    (tmp_path / "token").write_text(token)
    ways: dict[str, tuple[PeopleOptions, dict[str, Any]]] = {
        "own": (PeopleOptions(), {"servers": {"feedback": (running.address,)}, "tls": certs / "stage"}),
        "certificate": (PeopleOptions(address=running.address, tls=str(certs / "stage")), {}),
        "token": (
            PeopleOptions(
                address=running.caller_address, tls=str(certs / "outside"), token_file=str(tmp_path / "token")
            ),
            {},
        ),
    }
    options, of_the_run = ways[how]
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(label(options, tmp_path, **of_the_run)))
    asking.start()
    try:
        link = asyncio.run(invited(running, certs))
        ada = join(link)
        items = people.items_of([QUESTION])
        campaign = campaign_of("r.label", options, items).name
        while "Which reply" not in ada.get(f"/c/{campaign}").text:
            assert asking.is_alive(), found
        answer(ada, campaign, "a2")
    finally:
        asking.join(60)
    ((row,),) = found
    assert row.annotator == "ada"


async def invited(running: Running, certs: Path) -> str:
    async with AsyncFeedbackClient(running.address, tls=certs / "stage") as client:
        return await client.invite("ada")


def test_who_is_no_part_of_the_fleet_asks_nobody(
    guarded: tuple[Running, str, str], certs: Path, tmp_path: Path
) -> None:
    running, _, token = guarded
    caller = PeopleOptions(address=running.address, tls=str(certs / "caller"))
    assert isinstance(label(caller, tmp_path), PermissionDenied)
    (tmp_path / "token").write_text(token)
    told = {"tls": str(certs / "outside"), "token_file": str(tmp_path / "token")}
    assert isinstance(label(PeopleOptions(address=running.caller_address, **told), tmp_path), PermissionDenied)
    (tmp_path / "token").write_text("guessed")
    assert isinstance(label(PeopleOptions(address=running.caller_address, **told), tmp_path), Unauthenticated)
