"""Chat templates that write today's date, pinned to one: the same messages are then the same tokens on every day."""

from __future__ import annotations

import datetime
import re

_FORMATS = re.compile(r"""strftime_now\(\s*(?:'([^']*)'|"([^"]*)")\s*\)""")
_PINNED = "{#- the date is pinned -#}"


def pinned(template: str, date: str) -> str:
    """The template with ``strftime_now(…)`` answering as on ``date`` (YYYY-MM-DD), and ``date_string`` (Llama 3's) set
    to it where a caller gives none; other templates stay as they are.

    What is pinned stands in the template itself, so that whoever loads the model renders the same.
    """
    if template.startswith(_PINNED):
        return template
    day = datetime.datetime.fromisoformat(date)
    formats = dict.fromkeys(single or double for single, double in _FORMATS.findall(template))
    if "strftime_now" not in template and "date_string" not in template:
        return template
    head = _PINNED
    if "date_string" in template:
        written = repr(day.strftime("%d %b %Y"))
        head += "{%- if date_string is not defined -%}{%- set date_string = " + written + " -%}{%- endif -%}"
    if "strftime_now" in template:
        answers = "".join(
            "{%- " + ("elif" if place else "if") + f" format == {form!r} -%}}{day.strftime(form)}"
            for place, form in enumerate(formats)
        )
        default = day.strftime("%Y-%m-%d")
        body = answers + "{%- else -%}" + default + "{%- endif -%}" if formats else default
        head += "{%- macro strftime_now(format) -%}" + body + "{%- endmacro -%}"
    return head + template
