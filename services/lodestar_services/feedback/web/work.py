"""The pages of those who judge: come in, answer, skip, undo, practise.

A page is made in one transaction, and an answer is one transaction; after each the browser is sent to the next page, so
that reloading repeats nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from lodestar import metrics
from lodestar.errors import InvalidArgument
from lodestar.feedback.campaign import MARKS
from lodestar.feedback.verdicts import MAX_TEXT
from lodestar_services.feedback import assignment, campaigns, forms, pages, people
from lodestar_services.feedback.assignment import Form, Nothing
from lodestar_services.feedback.campaigns import Opened
from lodestar_services.feedback.errors import BadForm, Gone, NotFound
from lodestar_services.feedback.people import Person
from lodestar_services.feedback.site import Site
from lodestar_services.feedback.web.security import (
    Attempts,
    caller_of,
    check_csrf,
    check_rate,
    cookie_name,
    read_fields,
    set_cookie,
)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class View:
    """What a page is made of, read in one transaction."""

    person: Person
    opened: Opened
    form: Form | Nothing
    answered: int
    page: int = 0
    fields: dict[str, str] | None = None
    problems: dict[str, str] | None = None


class WorkPages:
    """Handlers; see web.app for their addresses."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._guesses = Attempts(burst=10, per_minute=2)
        """Wrong invitations per address."""
        self._sent = Attempts(burst=120, per_minute=600)
        """Forms per person: many times what a person can do."""

    async def signed_in(
        self, request: Request, work: Callable[[sa.Connection, Person], Result], fields: dict[str, str] | None = None
    ) -> Result:
        """``work(connection, person)`` in one transaction; with ``fields`` for a form of this person's session."""
        cookie = request.cookies.get(cookie_name(self._site), "")

        def transaction(connection: sa.Connection) -> Result:
            person = people.signed_in(connection, cookie, now=self._site.clock())
            if fields is not None:
                check_csrf(request, person, fields)
                check_rate(self._sent, str(person.id), "rate")
                self._sent.count(str(person.id))
            return work(connection, person)

        return await self._site.database.run(transaction)

    async def fields(self, request: Request) -> dict[str, str]:
        """The form that was sent, kept for the page that says that the database is away."""
        request.state.fields = await read_fields(request)
        found: dict[str, str] = request.state.fields
        return found

    # --- coming in ---------------------------------------------------------------------------------------------
    async def home(self, request: Request) -> Response:
        """Campaigns to work on."""

        def work(connection: sa.Connection, person: Person) -> tuple[Person, list[tuple[Opened, int]]]:
            found = [one for one in campaigns.listed(connection) if not one.closed]
            return person, [(one, assignment.answered(connection, one, person.id)) for one in found]

        person, found = await self.signed_in(request, work)
        return HTMLResponse(pages.render("home.html.j2", person=person, campaigns=found))

    async def invitation(self, request: Request) -> Response:
        """Asks before it signs in: a link is also opened by whatever previews mail."""
        token = request.path_params["token"]
        found = await self._invited(request, token)
        page = pages.render("join.html.j2", name=found.name, groups=found.groups, token=token)
        return HTMLResponse(page)

    async def join(self, request: Request) -> Response:
        """Signs in whom the link invites."""
        fields = await self.fields(request)
        token = fields.get("token", "")
        await self._invited(request, token)
        groups = [group.strip() for group in fields.get("groups", "").split(",") if group.strip()]
        cookie = await self._site.database.run(people.join, token, groups, now=self._site.clock())
        response = RedirectResponse("/", 303)
        set_cookie(self._site, response, cookie)
        return response

    async def leave(self, request: Request) -> Response:
        """Signs out."""
        await self.signed_in(request, people.sign_out, await self.fields(request))
        response = RedirectResponse("/", 303)
        response.delete_cookie(cookie_name(self._site), path="/")
        return response

    async def _invited(self, request: Request, token: str) -> Any:
        caller = caller_of(request)
        check_rate(self._guesses, caller, "invitation")
        found = await self._site.database.run(people.invited, token)
        if found is None:
            self._guesses.count(caller)
            metrics.FEEDBACK_REFUSED.labels("invitation").inc()
            raise NotFound("This invitation is not known here, or was withdrawn. Ask whoever sent it for a new one.")
        return found

    # --- working -----------------------------------------------------------------------------------------------
    async def work(self, request: Request) -> Response:
        """The form that the person has open, or the next one."""
        wanted = request.query_params.get("page", "")
        view = await self.signed_in(request, self._next(request.path_params["campaign"], wanted))
        return self._page(view, late="late" in request.query_params)

    async def answer(self, request: Request) -> Response:
        """A page of a form, an answer, or a skip."""
        fields = await self.fields(request)
        name = request.path_params["campaign"]
        request.state.written = [fields[key] for key in ("completion", "text", "note") if fields.get(key)]
        try:
            where = await self.signed_in(request, lambda c, person: self._take(c, person, name, fields), fields)
        except BadForm as error:
            problems = error.problems
            view = await self.signed_in(request, lambda c, person: self._again(c, person, name, fields, problems))
            return self._page(view, 422)
        self._site.news.announce()
        return RedirectResponse(where, 303)

    async def undo(self, request: Request) -> Response:
        """Opens the last answer again."""
        fields = await self.fields(request)
        name = request.path_params["campaign"]

        def work(connection: sa.Connection, person: Person) -> bool:
            return assignment.undo(connection, _opened(connection, name), person.id, now=self._site.clock())

        if await self.signed_in(request, work, fields):
            metrics.FEEDBACK_JUDGEMENTS.labels("undone").inc()
            self._site.news.announce()
        return RedirectResponse(f"/c/{name}", 303)

    async def practice(self, request: Request) -> Response:
        """What the guide says of a practice item that was answered."""
        name, form_id = request.path_params["campaign"], request.path_params["form"]

        def work(connection: sa.Connection, person: Person) -> tuple[Person, Opened, Any]:
            opened = _opened(connection, name)
            said = [one for one in campaigns.judgements(connection, opened) if one.id == form_id]
            if not said or said[0].annotator != person.name or said[0].role != "practice":
                raise NotFound("There is no such practice item of yours.")
            item = campaigns.all_items(connection, opened, [said[0].item_id])[said[0].item_id]
            return person, opened, (said[0], item)

        person, opened, (said, item) = await self.signed_in(request, work)
        agreed = None if item.expected is None else _agrees(said.verdict, item.expected)
        letters = [forms.LETTERS[said.shown.index(i)] for i in range(len(item.completions))]
        page = pages.render(
            "practice.html.j2", person=person, opened=opened, said=said, item=item, agreed=agreed, letters=letters
        )
        return HTMLResponse(page)

    def _next(self, name: str, wanted: str) -> Callable[[sa.Connection, Person], View]:
        def work(connection: sa.Connection, person: Person) -> View:
            opened = _opened(connection, name)
            form = assignment.next_form(connection, opened, person.id, now=self._site.clock(), rng=self._site.rng)
            answered = assignment.answered(connection, opened, person.id)
            if isinstance(form, Nothing):
                return View(person, opened, form, answered)
            page = _page_number(opened, form, wanted)
            return View(person, opened, form, answered, page, form.draft.get(str(page)))

        return work

    def _take(self, connection: sa.Connection, person: Person, name: str, fields: dict[str, str]) -> str:
        """What becomes of a form that was sent; where to go next."""
        opened, here = _opened(connection, name), f"/c/{name}"
        form = assignment.form_of(connection, opened, person.id, fields.get("form", ""))
        if form is None:  # a second send of the same answer, or a second tab
            metrics.FEEDBACK_JUDGEMENTS.labels("again").inc()
            return here
        if fields.get("do") == "skip":
            assignment.skip(connection, form)
            metrics.FEEDBACK_JUDGEMENTS.labels("skipped").inc()
            return here
        campaign, page = opened.settings, _sent_page(opened, fields)
        draft = form.draft | {str(page): _content(fields)}
        if fields.get("do") == "back":
            assignment.keep_draft(connection, form, draft)
            return f"{here}?page={max(0, page - 1)}"
        if problems := forms.page_problems(campaign, form, page, fields):
            raise BadForm(problems)
        if page + 1 < forms.pages(campaign, form):
            assignment.keep_draft(connection, form, draft)
            return f"{here}?page={page + 1}"
        notes = [draft[key]["note"] for key in sorted(draft) if draft[key].get("note", "").strip()]
        outcome = assignment.submit(
            connection,
            opened,
            person.id,
            form,
            forms.verdict_of(campaign, form, draft),
            unsafe=any(sent.get("unsafe") == "yes" for sent in draft.values()),
            note="\n\n".join(notes),
            draft=draft,
            now=self._site.clock(),
        )
        metrics.FEEDBACK_JUDGEMENTS.labels(outcome).inc()
        return f"{here}?late=1" if outcome == "late" else _after(name, form)

    def _again(
        self, connection: sa.Connection, person: Person, name: str, fields: dict[str, str], problems: dict[str, str]
    ) -> View:
        opened = _opened(connection, name)
        form = assignment.form_of(connection, opened, person.id, fields.get("form", ""))
        if form is None:
            raise Gone("This form was answered in another window.")
        answered = assignment.answered(connection, opened, person.id)
        return View(person, opened, form, answered, _sent_page(opened, fields), fields, problems)

    def _page(self, view: View, code: int = 200, *, late: bool = False) -> Response:
        campaign = view.opened.settings
        if isinstance(view.form, Nothing):
            reason = view.form.reason
            page = pages.render(
                "nothing.html.j2",
                person=view.person,
                opened=view.opened,
                reason=reason,
                answered=view.answered,
                late=late,
            )
            return HTMLResponse(page)
        form = view.form
        page = pages.render(
            "work.html.j2",
            person=view.person,
            campaign=campaign,
            form=form,
            page=view.page,
            pages=forms.pages(campaign, form),
            answered=view.answered,
            late=late,
            filled=view.fields or {},
            problems=view.problems or {},
            replies=[form.item.completions[index] for index in form.shown],
            letters=forms.LETTERS,
            pair=forms.PAIR if campaign.strength else forms.PLAIN_PAIR,
            marks=MARKS,
            aspect=forms.aspect_of(campaign, form) if campaign.form == "aspects" else None,
            seconds=self._site.clock() - form.shown_at,
            most_examples=forms.MAX_EXAMPLES,
            max_text=MAX_TEXT,
            max_note=forms.MAX_NOTE,
        )
        return HTMLResponse(page, code)


def _opened(connection: sa.Connection, name: str) -> Opened:
    try:
        return campaigns.find(connection, name)
    except InvalidArgument:
        raise NotFound("There is no such campaign.") from None


def _sent_page(opened: Opened, fields: dict[str, str]) -> int:
    sent = fields.get("page", "0")
    return int(sent) if sent.isascii() and sent.isdigit() and len(sent) < 3 else 0


def _page_number(opened: Opened, form: Form, wanted: str) -> int:
    """The page asked for where those before it were sent, else the first that was not."""
    last = forms.pages(opened.settings, form) - 1
    reached = next((page for page in range(last) if str(page) not in form.draft), last)
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 3:
        return min(int(wanted), reached)
    return 0 if reached == last and last in map(int, form.draft) else reached


def _content(fields: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if name not in ("csrf", "form", "do")}


def _after(name: str, form: Form) -> str:
    return f"/c/{name}/practice/{form.id}" if form.item.role == "practice" else f"/c/{name}"


def _agrees(said: Any, expected: Any) -> bool:
    """Of pairs: the same side; of anything else the same answer."""
    if said.form == "pair":
        return bool(said.label == expected.label and said.both_bad == expected.both_bad)
    return bool(said == expected)
