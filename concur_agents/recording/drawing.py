"""What our pages share: their style, their plots, and how data gets into them.

A page is one file that needs no network. Its template has the marks `/*STYLE*/`, `/*DRAWING*/` and
`/*DATA*/null` in the places of `drawing.css`, `drawing.js` and its data.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


def drawn(template: str, data: Any) -> str:
    """The text of a template as a page with its data, which may hold any text."""
    page = template.replace("/*STYLE*/", style(), 1)
    page = page.replace("/*DRAWING*/", asset("concur_agents.recording", "drawing.js"), 1)
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    # Inside <script> only its end tag matters, and the id of an agent may hold anything.
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return page.replace("/*DATA*/null", text, 1)


def style() -> str:
    """The style of our pages; it changes only what is inside of an element of class `concur`."""
    return asset("concur_agents.recording", "drawing.css")


@cache
def asset(package: str, name: str) -> str:
    """A file of a package, as text."""
    return files(package).joinpath(name).read_text(encoding="utf-8")
