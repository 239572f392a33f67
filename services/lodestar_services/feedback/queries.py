"""The statements behind every page and every answer, built once: building one costs five times what running it does.

Parameters of an UPDATE begin with ``the_``, since a column's own name means its new value there.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam as given
from sqlalchemy import exists, func, insert, select, text, update

from lodestar_services.feedback.tables import answers, assignments, campaigns, items, members, people, sessions

SIGNED_IN = (
    select(people, sessions.c.csrf, sessions.c.digest)
    .select_from(sessions.join(people, sessions.c.person_id == people.c.id))
    .where(sessions.c.digest == given("digest"), sessions.c.expires_at > given("now"), people.c.revoked_at.is_(None))
)
CAMPAIGN = select(campaigns).where(campaigns.c.name == given("name"))
NEXT_POSITION = (
    update(campaigns)
    .where(campaigns.c.id == given("the_campaign"))
    .values(position=campaigns.c.position + 1)
    .returning(campaigns.c.position)
)
MEMBER = select(members).where(members.c.campaign_id == given("campaign"), members.c.person_id == given("person"))

# --- forms ---------------------------------------------------------------------------------------------------------


def _form(*which: Any) -> Any:
    """A person's assignment with its item, locked."""
    return (
        select(assignments, items.c.external_id, items.c.aspect, items.c.role, items.c.content, items.c.priority)
        .select_from(assignments.join(items, assignments.c.item_id == items.c.id))
        .where(assignments.c.person_id == given("person"), *which)
        .with_for_update(of=assignments)
    )


OPEN_FORM = _form(assignments.c.campaign_id == given("campaign"), assignments.c.state == "open")
FORM = _form(assignments.c.form == given("form"), assignments.c.campaign_id == given("campaign"))
FORM_OF_ASSIGNMENT = _form(assignments.c.id == given("assignment"))
RETURNED = (
    select(assignments.c.id)
    .select_from(assignments.join(items, assignments.c.item_id == items.c.id))
    .where(
        assignments.c.campaign_id == given("campaign"),
        assignments.c.person_id == given("person"),
        assignments.c.state == "returned",
        items.c.closed_at.is_(None),
        items.c.room > 0,
    )
    .order_by(assignments.c.id.desc())
    .limit(1)
    .with_for_update(of=items, skip_locked=True)
)
"""An item that the person had before them once and that still has room."""
ENDED_LEASES = (
    select(assignments.c.id, assignments.c.item_id)
    .where(
        assignments.c.campaign_id == given("campaign"), assignments.c.expires_at < given("now"), text("state = 'open'")
    )
    .with_for_update(skip_locked=True)
)
HOLD = update(assignments).where(assignments.c.id == given("the_assignment")).values(expires_at=given("the_end"))
ASSIGN = insert(assignments)

# --- items ---------------------------------------------------------------------------------------------------------
_seen = exists().where(assignments.c.item_id == items.c.id, assignments.c.person_id == given("person"))
UNSEEN = (
    select(items)
    .where(
        items.c.campaign_id == given("campaign"),
        items.c.role == given("role"),
        items.c.aspect == given("aspect"),
        text("room > 0"),  # literally, so that the partial index serves
        items.c.closed_at.is_(None),
        ~_seen,
    )
    .order_by(items.c.priority.desc(), items.c.id)
    .limit(1)
)
"""The next item of a role that the person has not had before them."""
UNSEEN_AND_FREE = UNSEEN.with_for_update(skip_locked=True)
"""Locked until the transaction's end, and passed over while another one holds it."""
TAKE = update(items).where(items.c.id == given("the_item"), items.c.role == "ordinary").values(room=items.c.room - 1)
CLOSED_AT = (
    select(campaigns.c.closed_at, items.c.closed_at)
    .select_from(items.join(campaigns, items.c.campaign_id == campaigns.c.id))
    .where(items.c.id == given("item"))
)

# --- answers -------------------------------------------------------------------------------------------------------
ANSWER = insert(answers)
MARK_ANSWERED = (
    update(assignments)
    .where(assignments.c.id == given("the_assignment"))
    .values(state="answered", draft=given("the_draft", type_=assignments.c.draft.type))
)
IS_ANSWERED = select(answers.c.id).where(
    answers.c.form == given("form"),
    answers.c.person_id == given("person"),
    answers.c.campaign_id == given("campaign"),
)
ANSWERED = (
    select(func.count())
    .select_from(answers.join(items, answers.c.item_id == items.c.id))
    .where(
        answers.c.campaign_id == given("campaign"),
        answers.c.person_id == given("person"),
        answers.c.set_aside.is_(None),
        items.c.role != "practice",
    )
)
"""Answers of a person that count, practice aside."""
