"""Render the HTML pages from the templates in ``templates/``; pages need no other file."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from image_classification.reporting.table import Table, to_html


def render(template: str, **values: Any) -> str:
    """Return the page of ``templates/<template>.html.j2``; all text is escaped."""
    return _environment().get_template(f"{template}.html.j2").render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("image_classification.reporting.page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["table"] = _table
    environment.filters["svg"] = _svg
    return environment


def _table(table: Table, stacked: bool = False) -> Markup:
    """Return the table without its title: the page has headings."""
    return Markup(to_html(replace(table, title=""), stacked=stacked))


def _svg(drawn: Any) -> Markup:
    from image_classification.reporting.pictures.draw import inline_svg

    return Markup(inline_svg(drawn))
