"""The tables, as migrations/versions makes them (a test compares the two).

    campaigns ─┬─ items ──── assignments ──── answers
               └─ members        │              │
    people ────┬─────────────────┴──────────────┘
               ├─ members, sessions
    audit      what leads did

An **assignment** is an item in front of a person: it holds the id of the form that is on the screen, the order that was
drawn, and a lease. An **answer** is what came back with a form; its id is the form's, so that it is there once however
often it was sent. Nothing is deleted: an answer that does not count says why (``set_aside``).
Times are Unix seconds of the server's clock. JSON columns hold values of lodestar.feedback.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

campaigns = Table(
    "campaigns",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("settings", JSON, nullable=False),  # lodestar.feedback.Campaign
    Column("position", Integer, nullable=False),  # of the last change; updating it is the lock that orders changes
    Column("created_at", Float, nullable=False),
    Column("closed_at", Float),
)

items = Table(
    "items",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("campaign_id", ForeignKey(campaigns.c.id), nullable=False),
    Column("external_id", String(200), nullable=False),
    Column("aspect", String(32), nullable=False),  # empty but in the form aspects, where every aspect has a row
    Column("role", String(16), nullable=False),
    Column("content", JSON, nullable=False),  # prompt, completions, models, expected, explanation, style
    Column("digest", String(64), nullable=False),  # of the content, to tell a repeated call from another item
    Column("priority", Float, nullable=False),
    Column("room", Integer, nullable=False),  # answers wanted, less those that count and the leases that are out
    Column("closed_at", Float),
    UniqueConstraint("campaign_id", "external_id", "aspect"),
)
Index(
    "ix_items_to_ask",
    items.c.campaign_id,
    items.c.role,
    items.c.aspect,
    items.c.priority.desc(),
    items.c.id,
    sqlite_where=text("room > 0"),
    postgresql_where=text("room > 0"),
)

people = Table(
    "people",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),  # annotator or lead
    Column("token_digest", String(64), nullable=False, unique=True),  # SHA-256 of the invitation's token
    Column("groups", JSON, nullable=False),  # that the person declares
    Column("invited_at", Float, nullable=False),
    Column("joined_at", Float),
    Column("revoked_at", Float),
)

members = Table(
    "members",
    metadata,
    Column("campaign_id", ForeignKey(campaigns.c.id), primary_key=True),
    Column("person_id", ForeignKey(people.c.id), primary_key=True),
    Column("aspect", String(32), nullable=False),
    Column("set_aside", Text),  # a lead's reason for which none of the person's answers counts
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(64), primary_key=True),  # SHA-256 of the cookie
    Column("person_id", ForeignKey(people.c.id), nullable=False, index=True),
    Column("csrf", String(64), nullable=False),
    Column("expires_at", Float, nullable=False),
)

assignments = Table(
    "assignments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("form", String(64), nullable=False, unique=True),
    Column("campaign_id", ForeignKey(campaigns.c.id), nullable=False),
    Column("item_id", ForeignKey(items.c.id), nullable=False),
    Column("person_id", ForeignKey(people.c.id), nullable=False),
    Column("state", String(16), nullable=False),  # open, answered, skipped, expired
    Column("shown", JSON, nullable=False),  # the item's indices in the order drawn for this person
    Column("draft", JSON, nullable=False),  # pages answered so far, of forms with several
    Column("shown_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    UniqueConstraint("item_id", "person_id"),
    # Two tabs show one form: a person has one thing open in a campaign.
    Index(
        "uq_assignments_open",
        "campaign_id",
        "person_id",
        unique=True,
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
    Index(
        "ix_assignments_leases",
        "campaign_id",
        "expires_at",
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
)

answers = Table(
    "answers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("form", String(64), nullable=False, unique=True),
    Column("assignment_id", ForeignKey(assignments.c.id), nullable=False),
    Column("campaign_id", ForeignKey(campaigns.c.id), nullable=False),
    Column("item_id", ForeignKey(items.c.id), nullable=False, index=True),
    Column("person_id", ForeignKey(people.c.id), nullable=False),
    Column("verdict", JSON, nullable=False),
    Column("unsafe", Boolean, nullable=False),
    Column("note", Text, nullable=False),
    Column("shown", JSON, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("answered_at", Float, nullable=False),
    Column("position", Integer, nullable=False),
    Column("set_aside", Text),
    Index(
        "uq_answers_counted",
        "assignment_id",
        unique=True,
        sqlite_where=text("set_aside IS NULL"),
        postgresql_where=text("set_aside IS NULL"),
    ),
    Index("ix_answers_changes", "campaign_id", "position"),
    Index("ix_answers_of", "person_id", "campaign_id"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("by", String(64), nullable=False),
    Column("what", Text, nullable=False),
)
