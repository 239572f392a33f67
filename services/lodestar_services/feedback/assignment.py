"""Who is asked what, and what becomes of an answer. Every function works inside one transaction.

    next_form    the form a person has open; else practice, then now and then a gold item, then the item of the highest
                 priority that has room and that they have not seen
    submit       an answer becomes a row once, whatever the network does; one that comes too late is kept, set aside
    undo         the last answer is set aside and its form is open again

An item's ``room`` is how many more may take it: a lease takes one, an answer keeps it, a skip or the lease's end gives
it back.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa

from lodestar.feedback.campaign import Campaign
from lodestar.feedback.records import Item
from lodestar.feedback.verdicts import Verdict
from lodestar_services.feedback import queries
from lodestar_services.feedback.campaigns import Opened, item_of, next_position
from lodestar_services.feedback.errors import Gone, NotFound
from lodestar_services.feedback.tables import answers, assignments, items, members

Outcome = Literal["counted", "again", "late"]
UNDONE = "undone by the annotator"
CLOSED = "came after the campaign was closed"
LATE = "came after its lease had ended and others had answered"


@dataclass(frozen=True, slots=True)
class Form:
    """What is in front of a person."""

    id: str
    assignment_id: int
    item_id: int
    item: Item
    aspect: str
    shown: tuple[int, ...]
    """The item's indices in the order drawn."""
    draft: dict[str, Any]
    """Fields by page that were sent so far, or with the answer that was undone."""
    shown_at: float
    state: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """Why there is nothing to ask."""

    reason: Literal["closed", "limit", "empty", "set aside"]


def next_form(
    connection: sa.Connection, opened: Opened, person_id: int, *, now: float, rng: random.Random
) -> Form | Nothing:
    """The form that is open for the person, or a new one."""
    if opened.closed:
        return Nothing("closed")
    found = _form(connection, queries.OPEN_FORM, person=person_id, campaign=opened.id)
    if found is not None:
        _hold(connection, opened, found, now)
        return found
    member = _member(connection, opened, person_id)
    if member.set_aside is not None:
        return Nothing("set aside")
    _end_leases(connection, opened, now)
    campaign = opened.settings
    if (item := _unseen(connection, opened, person_id, member.aspect, "practice")) is not None:
        return _assign(connection, opened, person_id, item, now, rng)
    if campaign.limit is not None and answered(connection, opened, person_id) >= campaign.limit:
        return Nothing("limit")
    if rng.random() < campaign.gold_share:
        gold = _unseen(connection, opened, person_id, member.aspect, "gold")
        if gold is not None:
            return _assign(connection, opened, person_id, gold, now, rng)
    if (again := _returned(connection, opened, person_id)) is not None:
        _take(connection, again.item_id)
        return _reopen(connection, opened, again, now)
    item = _unseen(connection, opened, person_id, member.aspect, "ordinary")
    if item is None:
        return Nothing("empty")
    _take(connection, item.id)
    return _assign(connection, opened, person_id, item, now, rng)


def form_of(connection: sa.Connection, opened: Opened, person_id: int, form: str) -> Form | None:
    """The person's form of this id; None when it was answered already.

    Raises:
        NotFound: it is nobody's or another person's (the two are not told apart), or was replaced.
    """
    which = {"form": form, "person": person_id, "campaign": opened.id}
    if connection.scalar(queries.IS_ANSWERED, which):
        return None
    found = _form(connection, queries.FORM, **which)
    if found is None:
        raise NotFound("This form is not known: it was replaced, or it is another person's. Nothing was counted.")
    return found


def keep_draft(connection: sa.Connection, form: Form, draft: dict[str, Any]) -> None:
    """What was sent so far, of a form with several pages."""
    connection.execute(sa.update(assignments).where(assignments.c.id == form.assignment_id).values(draft=draft))


def submit(
    connection: sa.Connection,
    opened: Opened,
    person_id: int,
    form: Form,
    verdict: Verdict,
    *,
    unsafe: bool,
    note: str,
    draft: dict[str, Any],
    now: float,
) -> Outcome:
    """Writes the answer down. ``form`` was read in this transaction."""
    reason = _too_late(connection, form)
    if reason is None:
        connection.execute(queries.MARK_ANSWERED, {"the_assignment": form.assignment_id, "the_draft": draft})
    connection.execute(  # last: its position is held against others until the transaction's end
        queries.ANSWER,
        {
            "form": form.id,
            "assignment_id": form.assignment_id,
            "campaign_id": opened.id,
            "item_id": form.item_id,
            "person_id": person_id,
            "verdict": verdict.model_dump(mode="json"),
            "unsafe": unsafe,
            "note": note,
            "shown": list(form.shown),
            "seconds": now - form.shown_at,
            "answered_at": now,
            "position": next_position(connection, opened.id),
            "set_aside": reason,
        },
    )
    return "counted" if reason is None else "late"


def skip(connection: sa.Connection, form: Form) -> None:
    """The person is not asked this again; somebody else is."""
    if form.state == "open":
        connection.execute(sa.update(assignments).where(assignments.c.id == form.assignment_id).values(state="skipped"))
        give_back(connection, [form.item_id])


def undo(connection: sa.Connection, opened: Opened, person_id: int, *, now: float) -> bool:
    """Sets the person's last answer aside and opens its form again; False when there is none.

    Raises:
        Gone: the campaign is closed: its answers stand.
    """
    if opened.closed:
        raise Gone("The campaign is closed; its answers stand as they are.")
    last = connection.execute(
        sa.select(answers.c.id, answers.c.assignment_id)
        .where(answers.c.campaign_id == opened.id, answers.c.person_id == person_id, answers.c.set_aside.is_(None))
        .order_by(answers.c.id.desc())
        .limit(1)
    ).one_or_none()
    if last is None:
        return False
    current = _form(connection, queries.OPEN_FORM, person=person_id, campaign=opened.id)
    if current is not None:
        _return(connection, [(current.assignment_id, current.item_id)])
    position = next_position(connection, opened.id)
    connection.execute(sa.update(answers).where(answers.c.id == last.id).values(set_aside=UNDONE, position=position))
    form = _form(connection, queries.FORM_OF_ASSIGNMENT, person=person_id, assignment=last.assignment_id)
    assert form is not None, "an answer has its assignment"
    _reopen(connection, opened, form, now)
    return True


def answered(connection: sa.Connection, opened: Opened, person_id: int) -> int:
    """Answers of a person that count, practice aside."""
    found = connection.scalar(queries.ANSWERED, {"campaign": opened.id, "person": person_id})
    return int(found or 0)


def give_back(connection: sa.Connection, item_ids: list[int]) -> None:
    """Room for one more answer each."""
    for item_id in sorted(item_ids):  # one by one: an item may stand there twice
        connection.execute(
            sa.update(items).where(items.c.id == item_id, items.c.role == "ordinary").values(room=items.c.room + 1)
        )


def _form(connection: sa.Connection, query: sa.Select[Any], **which: Any) -> Form | None:
    row = connection.execute(query, which).one_or_none()
    if row is None:
        return None
    shown = tuple(row.shown)
    return Form(row.form, row.id, row.item_id, item_of(row), row.aspect, shown, row.draft, row.shown_at, row.state)


def _hold(connection: sa.Connection, opened: Opened, form: Form, now: float) -> None:
    """Whoever looks at a form holds it for another lease."""
    until = now + opened.settings.lease_seconds
    connection.execute(queries.HOLD, {"the_assignment": form.assignment_id, "the_end": until})


def _member(connection: sa.Connection, opened: Opened, person_id: int) -> Any:
    which = {"campaign": opened.id, "person": person_id}
    row = connection.execute(queries.MEMBER, which).one_or_none()
    if row is None:
        aspect = _aspect(connection, opened.id, opened.settings)
        connection.execute(sa.insert(members).values(campaign_id=opened.id, person_id=person_id, aspect=aspect))
        row = connection.execute(queries.MEMBER, which).one()
    return row


def _aspect(connection: sa.Connection, campaign_id: int, campaign: Campaign) -> str:
    """The aspect that is furthest behind its share of the people."""
    if campaign.form != "aspects":
        return ""
    counted = sa.select(members.c.aspect, sa.func.count().label("people")).group_by(members.c.aspect)
    rows = connection.execute(counted.where(members.c.campaign_id == campaign_id))
    held = {row.aspect: row.people for row in rows}
    return min(campaign.aspects, key=lambda aspect: (held.get(aspect.name, 0) + 1) / aspect.share).name


def _unseen(connection: sa.Connection, opened: Opened, person_id: int, aspect: str, role: str) -> Any | None:
    query = queries.UNSEEN_AND_FREE if role == "ordinary" else queries.UNSEEN
    which = {"campaign": opened.id, "person": person_id, "aspect": aspect, "role": role}
    return connection.execute(query, which).one_or_none()


def _returned(connection: sa.Connection, opened: Opened, person_id: int) -> Form | None:
    found = connection.scalar(queries.RETURNED, {"campaign": opened.id, "person": person_id})
    if found is None:
        return None
    return _form(connection, queries.FORM_OF_ASSIGNMENT, person=person_id, assignment=found)


def _assign(
    connection: sa.Connection, opened: Opened, person_id: int, row: Any, now: float, rng: random.Random
) -> Form:
    item = item_of(row)
    shown = list(range(len(item.completions)))
    rng.shuffle(shown)
    form = secrets.token_urlsafe(24)
    added = connection.execute(
        queries.ASSIGN,
        {
            "form": form,
            "campaign_id": opened.id,
            "item_id": row.id,
            "person_id": person_id,
            "state": "open",
            "shown": shown,
            "draft": {},
            "shown_at": now,
            "expires_at": now + opened.settings.lease_seconds,
        },
    )
    (key,) = added.inserted_primary_key or (0,)
    return Form(form, key, row.id, item, row.aspect, tuple(shown), {}, now, "open")


def _reopen(connection: sa.Connection, opened: Opened, form: Form, now: float) -> Form:
    """Under a new id: what is sent for the old one is an old answer."""
    fresh = replace(form, id=secrets.token_urlsafe(24), shown_at=now, state="open")
    connection.execute(
        sa.update(assignments)
        .where(assignments.c.id == form.assignment_id)
        .values(form=fresh.id, state="open", shown_at=now, expires_at=now + opened.settings.lease_seconds)
    )
    return fresh


def _too_late(connection: sa.Connection, form: Form) -> str | None:
    """Why the answer cannot count; a lease that ended is taken again where the item still has room."""
    closed = connection.execute(queries.CLOSED_AT, {"item": form.item_id}).one()
    if any(at is not None for at in closed):
        return CLOSED
    if form.state == "open" or form.item.role != "ordinary":
        return None
    taken = connection.execute(
        sa.update(items).where(items.c.id == form.item_id, items.c.room > 0).values(room=items.c.room - 1)
    )
    return None if taken.rowcount else LATE


def _end_leases(connection: sa.Connection, opened: Opened, now: float) -> None:
    found = connection.execute(queries.ENDED_LEASES, {"campaign": opened.id, "now": now})
    if ended := [(row.id, row.item_id) for row in found]:
        _return(connection, ended)


def _return(connection: sa.Connection, ended: list[tuple[int, int]]) -> None:
    """Leases that are over: the (assignment, item) pairs' items may be asked of others."""
    connection.execute(
        sa.update(assignments).where(assignments.c.id.in_([one for one, _ in ended])).values(state="returned")
    )
    give_back(connection, [item for _, item in ended])


def _take(connection: sa.Connection, item_id: int) -> None:
    connection.execute(queries.TAKE, {"the_item": item_id})
