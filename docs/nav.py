"""A hook of mkdocs: "FOLDER/*" in the navigation stands for all pages of that folder that it does not name."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Called by mkdocs with its configuration; returns it, with the navigation filled in."""
    docs = Path(config["docs_dir"])
    named = {page for _, pages in _sections(config["nav"]) for page in pages}
    for _, pages in _sections(config["nav"]):
        for pattern in [page for page in pages if page.endswith("/*")]:
            found = (str(path.relative_to(docs)) for path in sorted(docs.glob(f"{pattern}.md")))
            place = pages.index(pattern)
            pages[place : place + 1] = [page for page in found if page not in named]
    return config


def _sections(nav: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    return [(title, pages) for entry in nav for title, pages in entry.items() if isinstance(pages, list)]
