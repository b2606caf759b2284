"""Render the Jinja2 templates of the report, which are in the folder templates/."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> Markup:
    """Return the text of a template with `values` inserted, e.g. render("search.html.j2", trials=12).

    Each value is escaped, unless it is a `Markup`. The result is a `Markup`, so that another template can insert it.
    """
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(TEMPLATES)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"breakable": breakable, "options": options}
    return made


def script_json(value: Any) -> Markup:
    """Return `value` as JSON for a script element, which a name that contains "</script>" must not end."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))


def breakable(text: str) -> Markup:
    """Return `text` as HTML in which a line may break after a plus sign."""
    return Markup(str(escape(text)).replace("+", "+<wbr>"))


def options(text: str) -> Markup:
    """Return `text` as HTML in which no line breaks inside the name of an option, such as --checkpoint=."""
    return Markup(re.sub(r"(?<=\s)(--[\w.-]+=?)", r'<span class="option">\1</span>', str(escape(text))))
