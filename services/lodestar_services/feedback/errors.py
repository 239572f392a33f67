"""What a person at the page is told instead of what was asked for; web.app turns these into pages."""

from __future__ import annotations

from typing import ClassVar


class PageError(Exception):
    """The message is a sentence for the person; ``code`` the HTTP status."""

    code: ClassVar[int] = 400


class BadForm(PageError):
    """A field is missing or out of range: the form is shown again with ``problems``, by field."""

    code: ClassVar[int] = 422

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__("; ".join(problems.values()))
        self.problems = problems


class NotSignedIn(PageError):
    """No session, or an ended one."""

    code: ClassVar[int] = 401


class Forbidden(PageError):
    """Signed in, and not allowed to."""

    code: ClassVar[int] = 403


class NotFound(PageError):
    """No such thing, or not this person's."""

    code: ClassVar[int] = 404


class Gone(PageError):
    """It was there once: a form of an item that is no longer theirs. What they wrote was kept, set aside."""

    code: ClassVar[int] = 410


class TooLarge(PageError):
    """More than a form may hold."""

    code: ClassVar[int] = 413


class TooMany(PageError):
    """Requests above the rate."""

    code: ClassVar[int] = 429
