"""The pages of leads: progress, agreement, people, disagreements, invitations, and what was done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from lodestar.errors import InvalidArgument
from lodestar.feedback.campaign import MARKS
from lodestar.feedback.records import Item, Judgement
from lodestar.feedback.rows import Row
from lodestar.preference.annotators import ALARM
from lodestar_services.feedback import campaigns, pages, people, quality
from lodestar_services.feedback import export as export_
from lodestar_services.feedback.campaigns import Counts, Opened
from lodestar_services.feedback.errors import Forbidden, NotFound, PageError
from lodestar_services.feedback.people import Person
from lodestar_services.feedback.site import Site
from lodestar_services.feedback.web.security import check_csrf, cookie_name, read_fields

Result = TypeVar("Result")
MAX_REASON = 500
MOST_DISAGREEMENTS = 50


@dataclass(frozen=True, slots=True)
class Standing:
    """A campaign as its lead sees it."""

    opened: Opened
    counts: Counts
    items: dict[str, Item]
    judgements: list[Judgement]


class LeadPages:
    """Handlers; see web.app for their addresses."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def overview(self, request: Request) -> Response:
        """All campaigns and the audit log."""

        def work(connection: sa.Connection, person: Person) -> dict[str, Any]:
            found = [(one, campaigns.counts(connection, one)) for one in campaigns.listed(connection)]
            return {"person": person, "campaigns": found, "audit": people.recorded(connection)}

        return self._page("lead.html.j2", **await self._read(request, work))

    async def campaign(self, request: Request) -> Response:
        """Progress, agreement, everybody's work, disagreements."""
        name = request.path_params["campaign"]

        def work(connection: sa.Connection, person: Person) -> dict[str, Any]:
            standing = _standing(connection, name)
            settings, said = standing.opened.settings, standing.judgements
            differing = quality.disagreements(settings, said)
            return {
                "person": person,
                "standing": standing,
                "agreements": [
                    *filter(None, [quality.agreement(settings, said)]),
                    *quality.by_aspect(settings, said),
                ],
                "groups": quality.by_group(settings, said),
                "assessments": quality.assessments(settings, standing.items, said),
                "aside": _aside(said),
                "disagreements": differing[:MOST_DISAGREEMENTS],
                "differing": len(differing),
                "alarm": ALARM,
            }

        return self._page("campaign.html.j2", **await self._read(request, work))

    async def item(self, request: Request) -> Response:
        """Everything that was said about one item."""
        name, item_id = request.path_params["campaign"], request.query_params.get("id", "")

        def work(connection: sa.Connection, person: Person) -> dict[str, Any]:
            opened = _opened(connection, name)
            found = campaigns.all_items(connection, opened, [item_id])
            if item_id not in found:
                raise NotFound("There is no such item in this campaign.")
            said = campaigns.judgements(connection, opened, item=item_id)
            return {"person": person, "opened": opened, "item": found[item_id], "said": said, "marks": MARKS}

        return self._page("item.html.j2", **await self._read(request, work))

    async def export(self, request: Request) -> Response:
        """The rows as JSONL, of one moment, while people go on answering."""
        name = request.path_params["campaign"]

        def work(connection: sa.Connection, person: Person) -> list[Row]:
            _opened(connection, name)
            return export_.export(connection, name)

        rows = await self._read(request, work)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        headers = {"content-disposition": f'attachment; filename="{name}.jsonl"'}
        return StreamingResponse(lines, media_type="application/jsonl; charset=utf-8", headers=headers)

    async def people(self, request: Request) -> Response:
        """Who is invited."""

        def work(connection: sa.Connection, person: Person) -> dict[str, Any]:
            return {"person": person, "people": people.everybody(connection)}

        return self._page("people.html.j2", link=None, invited=None, **await self._read(request, work))

    async def invite(self, request: Request) -> Response:
        """Makes a link and shows it this once."""
        fields = await read_fields(request)
        role: people.PersonRole = "lead" if fields.get("role") == "lead" else "annotator"
        name = fields.get("name", "").strip()

        def work(connection: sa.Connection, person: Person) -> dict[str, Any]:
            token = people.invite(connection, name, role, now=self._site.clock())
            people.record(connection, person.name, f"invited {name} as {role}", now=self._site.clock())
            shown = {"link": self._site.invitation(token), "invited": name}
            return {"person": person, "people": people.everybody(connection)} | shown

        return self._page("people.html.j2", **await self._write(request, work, fields))

    async def revoke(self, request: Request) -> Response:
        """Ends somebody's link and sessions."""
        fields = await read_fields(request)
        name = fields.get("name", "")

        def work(connection: sa.Connection, person: Person) -> None:
            if name == person.name:
                raise PageError("This would lock you out yourself; another lead can do it.")
            people.revoke(connection, name, now=self._site.clock())
            people.record(connection, person.name, f"withdrew the invitation of {name}", now=self._site.clock())

        await self._write(request, work, fields)
        return RedirectResponse("/lead/people", 303)

    async def close(self, request: Request) -> Response:
        """Asks no more."""
        name = request.path_params["campaign"]

        def work(connection: sa.Connection, person: Person) -> None:
            _opened(connection, name)
            campaigns.close(connection, name, now=self._site.clock())
            people.record(connection, person.name, f"closed {name}", now=self._site.clock())

        await self._write(request, work, await read_fields(request))
        self._site.news.announce()
        return RedirectResponse(f"/lead/c/{name}", 303)

    async def aside(self, request: Request) -> Response:
        """Sets a person's work in a campaign aside, with a reason."""
        fields = await read_fields(request)
        campaign, name, reason = (
            request.path_params["campaign"],
            fields.get("name", ""),
            fields.get("reason", "").strip(),
        )
        if not reason or len(reason) > MAX_REASON or not reason.isprintable():
            raise PageError(f"Say why, in 1 to {MAX_REASON} characters on one line: the reason stays with the answers.")

        def work(connection: sa.Connection, person: Person) -> None:
            opened = _opened(connection, campaign)
            count = people.set_aside(connection, opened, name, f"{reason} ({person.name})")
            what = f"set {count} answers of {name} in {campaign} aside: {reason}"
            people.record(connection, person.name, what, now=self._site.clock())

        return await self._changed(request, work, fields)

    async def restore(self, request: Request) -> Response:
        """Takes that back."""
        fields = await read_fields(request)
        campaign, name = request.path_params["campaign"], fields.get("name", "")

        def work(connection: sa.Connection, person: Person) -> None:
            count = people.restore(connection, _opened(connection, campaign), name)
            what = f"took {count} answers of {name} in {campaign} back in"
            people.record(connection, person.name, what, now=self._site.clock())

        return await self._changed(request, work, fields)

    async def _changed(
        self, request: Request, work: Callable[[sa.Connection, Person], None], fields: dict[str, str]
    ) -> Response:
        await self._write(request, work, fields)
        self._site.news.announce()
        return RedirectResponse(f"/lead/c/{request.path_params['campaign']}", 303)

    async def _read(self, request: Request, work: Callable[[sa.Connection, Person], Result]) -> Result:
        return await self._site.database.read(self._as_lead(request, work))

    async def _write(
        self, request: Request, work: Callable[[sa.Connection, Person], Result], fields: dict[str, str]
    ) -> Result:
        return await self._site.database.run(self._as_lead(request, work, fields))

    def _as_lead(
        self,
        request: Request,
        work: Callable[[sa.Connection, Person], Result],
        fields: dict[str, str] | None = None,
    ) -> Callable[[sa.Connection], Result]:
        cookie = request.cookies.get(cookie_name(self._site), "")

        def transaction(connection: sa.Connection) -> Result:
            person = people.signed_in(connection, cookie, now=self._site.clock())
            if person.role != "lead":
                raise Forbidden("This page is for leads.")
            if fields is not None:
                check_csrf(request, person, fields)
            return work(connection, person)

        return transaction

    def _page(self, template: str, **values: Any) -> Response:
        return HTMLResponse(pages.render(template, **values))


def _opened(connection: sa.Connection, name: str) -> Opened:
    try:
        return campaigns.find(connection, name)
    except InvalidArgument:
        raise NotFound("There is no such campaign.") from None


def _standing(connection: sa.Connection, name: str) -> Standing:
    opened = _opened(connection, name)
    return Standing(
        opened,
        campaigns.counts(connection, opened),
        campaigns.all_items(connection, opened),
        campaigns.judgements(connection, opened),
    )


def _aside(said: list[Judgement]) -> dict[str, int]:
    """Reason → answers that it keeps from counting."""
    reasons: dict[str, int] = {}
    for one in said:
        if one.set_aside:
            reasons[one.set_aside] = reasons.get(one.set_aside, 0) + 1
    return reasons
