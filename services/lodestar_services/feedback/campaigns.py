"""Campaigns and their items: opened, filled, counted, closed, and read back as records.

Every function works on one connection, inside one transaction of lodestar_services.feedback.database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa

from lodestar.errors import FailedPrecondition, InvalidArgument
from lodestar.feedback.campaign import Campaign
from lodestar.feedback.records import Added, Item, ItemRole, Judgement, check_item
from lodestar.feedback.verdicts import parse_verdict
from lodestar_services.feedback import queries
from lodestar_services.feedback.tables import answers, assignments, campaigns, items, people


@dataclass(frozen=True, slots=True)
class Opened:
    """A campaign as it stands in the database."""

    id: int
    settings: Campaign
    position: int
    closed: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """Of ordinary items: what Progress says without agreement."""

    wanted: int
    done: int
    open: int
    people: int
    set_aside: int


def find(connection: sa.Connection, name: str) -> Opened:
    """
    Raises:
        InvalidArgument: there is none of this name.
    """
    row = connection.execute(queries.CAMPAIGN, {"name": name}).one_or_none()
    if row is None:
        raise InvalidArgument("campaign", f"there is no campaign {name!r} here; AddItems opens one")
    return _opened(row)


def listed(connection: sa.Connection) -> list[Opened]:
    """All, the newest first."""
    return [_opened(row) for row in connection.execute(sa.select(campaigns).order_by(campaigns.c.id.desc()))]


def add_items(connection: sa.Connection, campaign: Campaign, added: Sequence[Item], *, now: float) -> Added:
    """Opens the campaign where it is new; items that are there with the same content are left alone.

    Raises:
        InvalidArgument: an item cannot be asked.
        FailedPrecondition: the campaign has other settings or is closed, or an item of this id has other content.
    """
    for i, item in enumerate(added):
        check_item(item, campaign, f"items[{i}]")
    if len({item.id for item in added}) < len(added):
        raise InvalidArgument("items", "an id stands there twice")
    opened = _open(connection, campaign, now)
    known = _digests(connection, opened.id, [item.id for item in added])
    new = []
    for i, item in enumerate(added):
        content = _content(item)
        digest = hashlib.sha256(json.dumps([item.role, content], sort_keys=True).encode()).hexdigest()
        if item.id in known:
            if known[item.id] != digest:
                raise FailedPrecondition(f"items[{i}].id: {item.id!r} was added with other content; give it another id")
            continue
        new += [
            {
                "campaign_id": opened.id,
                "external_id": item.id,
                "aspect": aspect,
                "role": item.role,
                "content": content,
                "digest": digest,
                "priority": item.priority,
                "room": campaign.overlap if item.role == "ordinary" else 1,
            }
            for aspect in _aspects(campaign, item)
        ]
    if new:
        if opened.closed:
            raise FailedPrecondition(f"the campaign {campaign.name} is closed; open another one")
        connection.execute(sa.insert(items), new)
    fresh = len({row["external_id"] for row in new})
    return Added(fresh, len(added) - fresh, "")


def close(connection: sa.Connection, name: str, *, now: float) -> None:
    """Asks no more; a closed one stays so."""
    opened = find(connection, name)
    connection.execute(
        sa.update(campaigns).where(campaigns.c.id == opened.id, campaigns.c.closed_at.is_(None)).values(closed_at=now)
    )


def counts(connection: sa.Connection, opened: Opened) -> Counts:
    """How far it is. What is wanted is what is done, and the room and leases of items that are open still."""
    mine = items.c.campaign_id == opened.id
    ordinary = items.c.role == "ordinary"
    room = connection.scalar(
        sa.select(sa.func.sum(items.c.room)).where(mine, ordinary, items.c.room > 0, items.c.closed_at.is_(None))
    )
    leased = connection.scalar(
        sa.select(sa.func.count())
        .select_from(assignments.join(items, assignments.c.item_id == items.c.id))
        .where(mine, ordinary, assignments.c.state == "open")
    )
    done, who = connection.execute(
        sa.select(sa.func.count(), sa.func.count(answers.c.person_id.distinct()))
        .select_from(answers.join(items, answers.c.item_id == items.c.id))
        .where(answers.c.campaign_id == opened.id, answers.c.set_aside.is_(None), ordinary)
    ).one()
    aside = connection.scalar(
        sa.select(sa.func.count()).where(answers.c.campaign_id == opened.id, answers.c.set_aside.is_not(None))
    )
    return Counts(int(room or 0) + int(leased or 0) + done, done, int(leased or 0), who, int(aside or 0))


def judgements(
    connection: sa.Connection, opened: Opened, *, after: int = 0, limit: int | None = None, item: str | None = None
) -> list[Judgement]:
    """In the order of their last change; ``after`` a position, or of one item."""
    query = (
        sa.select(answers, items.c.external_id, items.c.role, people.c.name.label("annotator"), people.c.groups)
        .select_from(
            answers.join(items, answers.c.item_id == items.c.id).join(people, answers.c.person_id == people.c.id)
        )
        .where(answers.c.campaign_id == opened.id, answers.c.position > after)
        .order_by(answers.c.position)
        .limit(limit)
    )
    if item is not None:
        query = query.where(items.c.external_id == item)
    return [_judgement(row) for row in connection.execute(query)]


def all_items(connection: sa.Connection, opened: Opened, ids: Iterable[str] | None = None) -> dict[str, Item]:
    """By the caller's id; all of them, or those of ``ids``."""
    query = sa.select(items).where(items.c.campaign_id == opened.id)
    if ids is not None:
        query = query.where(items.c.external_id.in_(list(ids)))
    return {row.external_id: item_of(row) for row in connection.execute(query)}


def next_position(connection: sa.Connection, campaign_id: int) -> int:
    """Of a change that this transaction makes. Until its end nobody else gets one, so positions appear in order."""
    return cast(int, connection.scalar(queries.NEXT_POSITION, {"the_campaign": campaign_id}))


def item_of(row: Any) -> Item:
    """The record of a row of items."""
    content = row.content
    expected = content["expected"]
    return Item(
        id=row.external_id,
        prompt=content["prompt"],
        completions=tuple(content["completions"]),
        models=tuple(content["models"]),
        priority=row.priority,
        role=cast(ItemRole, row.role),
        expected=None if expected is None else parse_verdict(expected, "expected"),
        explanation=content["explanation"],
        style=content["style"],
    )


def _open(connection: sa.Connection, campaign: Campaign, now: float) -> Opened:
    row = connection.execute(queries.CAMPAIGN, {"name": campaign.name}).one_or_none()
    if row is None:
        settings = campaign.model_dump(mode="json")
        values = {"name": campaign.name, "settings": settings, "position": 0, "created_at": now}
        connection.execute(sa.insert(campaigns).values(values))
        return find(connection, campaign.name)
    opened = _opened(row)
    if opened.settings != campaign:
        theirs, ours = (one.model_dump(mode="json") for one in (campaign, opened.settings))
        changed = ", ".join(name for name in ours if ours[name] != theirs[name])
        raise FailedPrecondition(
            f"the campaign {campaign.name} was opened with other settings ({changed}): answers to two sets of them "
            "are not alike; use them as they were, or another name"
        )
    return opened


def _digests(connection: sa.Connection, campaign_id: int, ids: list[str]) -> dict[str, str]:
    query = sa.select(items.c.external_id, items.c.digest).where(
        items.c.campaign_id == campaign_id, items.c.external_id.in_(ids)
    )
    return {row.external_id: row.digest for row in connection.execute(query)}


def _aspects(campaign: Campaign, item: Item) -> list[str]:
    if campaign.form != "aspects":
        return [""]
    if item.expected is not None and item.expected.form == "aspects":
        return [item.expected.aspect]
    return [aspect.name for aspect in campaign.aspects]


def _content(item: Item) -> dict[str, Any]:
    return {
        "prompt": item.prompt,
        "completions": list(item.completions),
        "models": list(item.models),
        "expected": None if item.expected is None else item.expected.model_dump(mode="json"),
        "explanation": item.explanation,
        "style": item.style,
    }


def _opened(row: Any) -> Opened:
    return Opened(row.id, Campaign.model_validate(row.settings), row.position, row.closed_at is not None)


def _judgement(row: Any) -> Judgement:
    return Judgement(
        id=row.form,
        position=row.position,
        item_id=row.external_id,
        annotator=row.annotator,
        verdict=parse_verdict(row.verdict, "verdict"),
        shown=tuple(row.shown),
        unsafe=row.unsafe,
        note=row.note,
        seconds=row.seconds,
        judged_at=row.answered_at,
        set_aside=row.set_aside or "",
        role=row.role,
        groups=tuple(row.groups),
    )
