"""A campaign's rows for Lodestar's data files, and how far it is; read from the database in one transaction each."""

from __future__ import annotations

import sqlalchemy as sa

from lodestar.feedback.records import Progress
from lodestar.feedback.rows import Row, rows_of
from lodestar_services.feedback import campaigns, quality
from lodestar_services.feedback.site import Site


def export(connection: sa.Connection, name: str) -> list[Row]:
    """
    Raises:
        InvalidArgument: there is no campaign of this name.
    """
    opened = campaigns.find(connection, name)
    said = sorted(campaigns.judgements(connection, opened), key=lambda one: (one.judged_at, one.position))
    return rows_of(opened.settings, campaigns.all_items(connection, opened), said)


def progress(connection: sa.Connection, name: str, site: Site) -> Progress:
    """
    Raises:
        InvalidArgument: there is no campaign of this name.
    """
    opened = campaigns.find(connection, name)
    counts = campaigns.counts(connection, opened)
    agreed = quality.agreement(opened.settings, campaigns.judgements(connection, opened))
    return Progress(
        campaign=name,
        link=site.campaign(name),
        wanted=counts.wanted,
        done=counts.done,
        open=counts.open,
        people=counts.people,
        set_aside=counts.set_aside,
        alpha=agreed.alpha if agreed else None,
        alpha_low=agreed.low if agreed else None,
        alpha_high=agreed.high if agreed else None,
        closed=opened.closed,
        position=opened.position,
    )
