"""Templates, style and script of the pages, and how text gets into them.

Whatever a model or a person wrote is escaped, and characters that a screen would obey instead of showing (terminal
sequences, text direction) are shown as what they are. Nothing is fetched from elsewhere.
"""

from __future__ import annotations

import hashlib
import unicodedata
from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

_FILES = resources.files(__name__)
STATIC = {"page.css": "text/css", "work.js": "text/javascript", "star.svg": "image/svg+xml"}
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
_PLAIN = frozenset("\n\t\u200d\ufe0f")
"""Shown by the browser as they are meant: line and tabulator, and what joins emoji."""
_LINES = dict.fromkeys(map(ord, "\n\t"))


def shown(text: str) -> Markup:
    """Text of a model or a person: ``\\x1b[31m`` is seen as such, a right-to-left override as its number."""
    if text.translate(_LINES).isprintable():  # as nearly all is: no sign to replace
        return escape(text)
    pieces: list[str] = []
    for character in text.replace("\r\n", "\n"):
        if character in _PLAIN or unicodedata.category(character) not in _INVISIBLE:
            pieces.append(str(escape(character)))
            continue
        pieces.append(f'<span class="odd" title="U+{ord(character):04X}">{_sign(character)}</span>')
    return Markup("".join(pieces))


@lru_cache(64)
def markdown(text: str) -> Markup:
    """Instructions: CommonMark with tables; HTML in it is text, images are not loaded."""
    plain = (one if one in _PLAIN or unicodedata.category(one) not in _INVISIBLE else _sign(one) for one in text)
    return Markup(_MARKDOWN.render("".join(plain)))


def _sign(character: str) -> str:
    """What stands for a character that must not be obeyed."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"U+{code:04X}"


def clock(seconds: float) -> str:
    """``05:39``; a clock that went back is no time at all."""
    whole = max(0, int(seconds))
    return f"{whole // 60:02d}:{whole % 60:02d}"


def static(name: str) -> bytes:
    """A file that pages link to."""
    return (_FILES / name).read_bytes()


def static_url(name: str) -> str:
    """With the file's digest, so that it may be kept for ever."""
    return f"/static/{name}?{hashlib.sha256(static(name)).hexdigest()[:12]}"


def render(template: str, **values: Any) -> str:
    """One page."""
    return _ENVIRONMENT.get_template(template).render(values)


def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table").disable("image")

    def outward(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        tokens[index].attrSet("rel", "noreferrer noopener nofollow")
        tokens[index].attrSet("target", "_blank")
        return str(self.renderToken(tokens, index, options, env))

    parser.add_render_rule("link_open", outward)
    return parser


_MARKDOWN = _markdown()
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader(__name__.rpartition(".")[0], "pages"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_ENVIRONMENT.filters.update(shown=shown, markdown=markdown, clock=clock)
_ENVIRONMENT.globals.update(static_url={name: static_url(name) for name in STATIC})
