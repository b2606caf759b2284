"""Render the Jinja2 templates of the report, which are in the folder templates/."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> Markup:
    """Return the text of a template with `values` inserted, e.g. render("search.html.j2", trials=12).

    Each value is escaped, unless it is a `Markup`. The result is a `Markup`, so that another template can insert it.
    """
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(TEMPLATES)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
