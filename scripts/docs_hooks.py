"""Hooks of mkdocs: pages of docs/ read well in the repository and on the site."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"

_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_page_markdown(markdown, page, **_):
    """Links to files that are not on the site, such as sources, become plain text."""
    folder = (DOCS / page.file.src_uri).parent

    def keep(match):
        text, target = match.groups()
        return match.group(0) if _is_on_site(folder, target) else text

    return _LINK.sub(keep, markdown)


def _is_on_site(folder, target):
    if "://" in target or target.startswith(("#", "mailto:")):
        return True
    path = (folder / target.partition("#")[0]).resolve()
    return path.is_relative_to(DOCS) and path.suffix in (".md", ".png", ".svg")
