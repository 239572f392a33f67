"""Who may come in: invitations, sessions, roles, and setting somebody's work aside. Inside one transaction each.

Tokens and cookies are 256 random bits; the database holds their SHA-256, so that whoever reads it comes in as nobody.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from lodestar.errors import InvalidArgument
from lodestar_services.feedback import queries
from lodestar_services.feedback.assignment import give_back
from lodestar_services.feedback.campaigns import Opened, next_position
from lodestar_services.feedback.errors import NotFound, NotSignedIn
from lodestar_services.feedback.tables import answers, assignments, audit, items, members, people, sessions

SESSION_SECONDS = 30 * 86_400.0
MAX_GROUPS, MAX_GROUP = 8, 64
_NAME = re.compile(r"[\w.@-][\w.@ -]{0,63}")
PersonRole = Literal["annotator", "lead"]


@dataclass(frozen=True, slots=True)
class Person:
    """Who is signed in."""

    id: int
    name: str
    role: PersonRole
    groups: tuple[str, ...]
    csrf: str
    """Of the session: what a form must bring along."""
    session: str
    """Digest of the session's cookie."""


def digest(secret: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def invite(connection: sa.Connection, name: str, role: PersonRole, *, now: float) -> str:
    """The token of a person's link. A second invitation of the same name replaces the first: the old link and the old
    sessions end.

    Raises:
        InvalidArgument: the name cannot stand in a table, or belongs to somebody of another role.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument("name", f"{name!r}: 1 … 64 letters, digits, dots, dashes, @ and spaces")
    token = secrets.token_urlsafe(32)
    known = connection.execute(sa.select(people).where(people.c.name == name)).one_or_none()
    if known is None:
        row = {"name": name, "role": role, "token_digest": digest(token), "groups": [], "invited_at": now}
        connection.execute(sa.insert(people).values(row))
        return token
    if known.role != role:
        raise InvalidArgument("name", f"{name} is a {known.role} already; invite the {role} under another name")
    connection.execute(
        sa.update(people)
        .where(people.c.id == known.id)
        .values(token_digest=digest(token), invited_at=now, revoked_at=None)
    )
    _end_sessions(connection, known.id)
    return token


def revoke(connection: sa.Connection, name: str, *, now: float) -> None:
    """The link and the sessions end; the person's answers stay as they are.

    Raises:
        NotFound: there is nobody of this name.
    """
    found = _person(connection, name)
    connection.execute(sa.update(people).where(people.c.id == found.id).values(revoked_at=now))
    _end_sessions(connection, found.id)


def invited(connection: sa.Connection, token: str) -> Any | None:
    """Whom a link invites; None when it is unknown or was revoked."""
    query = sa.select(people).where(people.c.token_digest == digest(token), people.c.revoked_at.is_(None))
    return connection.execute(query).one_or_none()


def join(connection: sa.Connection, token: str, groups: Sequence[str] | None, *, now: float) -> str:
    """Signs in whom the link invites; the cookie. ``groups``: what the person declares, None to leave it.

    Raises:
        NotFound: the link is unknown or was revoked.
        InvalidArgument: too many groups, or one that is too long.
    """
    found = invited(connection, token)
    if found is None:
        raise NotFound("This invitation is not known here, or was withdrawn. Ask whoever sent it for a new one.")
    values: dict[str, Any] = {"joined_at": now}
    if groups is not None:
        values["groups"] = _checked(groups)
    connection.execute(sa.update(people).where(people.c.id == found.id).values(values))
    cookie = secrets.token_urlsafe(32)
    connection.execute(
        sa.insert(sessions).values(
            digest=digest(cookie),
            person_id=found.id,
            csrf=secrets.token_urlsafe(32),
            expires_at=now + SESSION_SECONDS,
        )
    )
    return cookie


def signed_in(connection: sa.Connection, cookie: str, *, now: float) -> Person:
    """
    Raises:
        NotSignedIn: the session is unknown or has ended.
    """
    row = connection.execute(queries.SIGNED_IN, {"digest": digest(cookie), "now": now}).one_or_none()
    if row is None:
        raise NotSignedIn("You are not signed in, or were for too long. Open the link of your invitation again.")
    return Person(row.id, row.name, row.role, tuple(row.groups), row.csrf, row.digest)


def sign_out(connection: sa.Connection, person: Person) -> None:
    """Ends this session."""
    connection.execute(sa.delete(sessions).where(sessions.c.digest == person.session))


def everybody(connection: sa.Connection) -> list[Any]:
    """All people, by name."""
    return list(connection.execute(sa.select(people).order_by(people.c.name)))


def set_aside(connection: sa.Connection, opened: Opened, name: str, reason: str) -> int:
    """None of the person's answers in the campaign counts any more, and they are asked no more; how many it were.

    Their items may be asked of others again.
    """
    found = _person(connection, name)
    _mark(connection, opened, found.id, reason)
    rows = connection.execute(
        sa.select(answers.c.id, answers.c.item_id).where(
            answers.c.campaign_id == opened.id, answers.c.person_id == found.id, answers.c.set_aside.is_(None)
        )
    ).all()
    for row in rows:
        position = next_position(connection, opened.id)
        connection.execute(sa.update(answers).where(answers.c.id == row.id).values(set_aside=reason, position=position))
    give_back(connection, [row.item_id for row in rows])
    open_ = connection.execute(
        sa.select(assignments.c.id, assignments.c.item_id).where(
            assignments.c.campaign_id == opened.id,
            assignments.c.person_id == found.id,
            assignments.c.state == "open",
        )
    ).all()
    for row in open_:
        connection.execute(sa.update(assignments).where(assignments.c.id == row.id).values(state="returned"))
        give_back(connection, [row.item_id])
    return len(rows)


def restore(connection: sa.Connection, opened: Opened, name: str) -> int:
    """Takes :func:`set_aside` back for what was set aside by it; how many answers it were."""
    found = _person(connection, name)
    member = connection.execute(
        sa.select(members.c.set_aside).where(members.c.campaign_id == opened.id, members.c.person_id == found.id)
    ).one_or_none()
    if member is None or member.set_aside is None:
        return 0
    _mark(connection, opened, found.id, None)
    rows = connection.execute(
        sa.select(answers.c.id, answers.c.item_id).where(
            answers.c.campaign_id == opened.id,
            answers.c.person_id == found.id,
            answers.c.set_aside == member.set_aside,
        )
    ).all()
    for row in rows:
        position = next_position(connection, opened.id)
        connection.execute(sa.update(answers).where(answers.c.id == row.id).values(set_aside=None, position=position))
        connection.execute(
            sa.update(items)
            .where(items.c.id == row.item_id, items.c.role == "ordinary")
            .values(room=items.c.room - 1)  # below 0 where others have answered since: nobody more is asked
        )
    return len(rows)


def record(connection: sa.Connection, by: str, what: str, *, now: float) -> None:
    """One line of the audit log."""
    connection.execute(sa.insert(audit).values(at=now, by=by, what=what))


def recorded(connection: sa.Connection, limit: int = 200) -> list[Any]:
    """The newest lines of it."""
    return list(connection.execute(sa.select(audit).order_by(audit.c.id.desc()).limit(limit)))


def _person(connection: sa.Connection, name: str) -> Any:
    found = connection.execute(sa.select(people).where(people.c.name == name)).one_or_none()
    if found is None:
        raise NotFound(f"There is nobody called {name} here.")
    return found


def _mark(connection: sa.Connection, opened: Opened, person_id: int, reason: str | None) -> None:
    which = (members.c.campaign_id == opened.id, members.c.person_id == person_id)
    done = connection.execute(sa.update(members).where(*which).values(set_aside=reason))
    if not done.rowcount:
        raise NotFound("This person has done nothing in this campaign yet.")


def _end_sessions(connection: sa.Connection, person_id: int) -> None:
    connection.execute(sa.delete(sessions).where(sessions.c.person_id == person_id))


def _checked(groups: Sequence[str]) -> list[str]:
    if len(groups) > MAX_GROUPS:
        raise InvalidArgument("groups", f"are {len(groups)}, at most {MAX_GROUPS} can be declared")
    for group in groups:
        if len(group) > MAX_GROUP or not group.isprintable():
            raise InvalidArgument("groups", f"must each be at most {MAX_GROUP} printable characters")
    return sorted(set(groups))
