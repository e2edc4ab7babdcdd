"""Hooks of mkdocs: "FOLDER/*" in the navigation, and links to files of the repository that are no pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_UPWARDS = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """ "FOLDER/*" stands for all pages of that folder that the navigation does not name."""
    docs = Path(config["docs_dir"])
    named = {page for pages in _sections(config["nav"]) for page in pages}
    for pages in _sections(config["nav"]):
        for pattern in [page for page in pages if page.endswith("/*")]:
            found = (str(path.relative_to(docs)) for path in sorted(docs.glob(f"{pattern}.md")))
            place = pages.index(pattern)
            pages[place : place + 1] = [page for page in found if page not in named]
    return config


def _sections(nav: list[dict[str, Any]]) -> list[list[str]]:
    return [pages for entry in nav for pages in entry.values() if isinstance(pages, list)]


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """A link out of docs/ leads somewhere in a checkout, and nowhere on the site: there it is the file's name."""
    docs = Path(config["docs_dir"]).resolve()
    here = Path(page.file.abs_src_path).parent

    def name(found: re.Match[str]) -> str:
        target = (here / found[2]).resolve()
        if target.is_relative_to(docs) or not target.exists():
            return found[0]  # mkdocs says so, if it leads nowhere
        path = f"`{target.relative_to(docs.parent)}`"
        return path if found[1] in (path, path.strip("`")) else f"{found[1]} ({path})"

    return _UPWARDS.sub(name, markdown)
