"""What every page of ours consists of beside its template: style, script and pictures inside, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lodestar.report.drawing import Figure
from lodestar.report.facts import Row

_FILES = resources.files("lodestar.report")


def template(name: str, filters: Row | None = None, names: Row | None = None) -> jinja2.Template:
    """A template of this package, with the filters and names that it uses."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(filters or {})
    environment.globals.update(names or {})
    return environment.from_string((_FILES / name).read_text(encoding="utf-8"))


def assets(pictures: Iterable[Figure]) -> dict[str, Any]:
    """The template's variables css, script, plotly and figures_json."""
    drawn: dict[str, Row] = {
        figure.id: {
            "data": figure.data,
            "layout": {**figure.layout, "height": figure.height},
            "alternative": figure.alternative,
            "titles": figure.titles,
        }
        for figure in pictures
    }
    return {
        "css": Markup((_FILES / "page.css").read_text(encoding="utf-8")),
        "script": Markup((_FILES / "page.js").read_text(encoding="utf-8")),
        "plotly": Markup(get_plotlyjs()),
        "figures_json": htmlsafe_json_dumps(drawn),
    }
