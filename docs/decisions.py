"""The list of decisions in docs/decisions/README.md: `python docs/decisions.py` writes it from their headings."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "decisions"
INDEX = FOLDER / "README.md"
_LIST = re.compile(r"(<!-- list: [^\n]*-->\n).*?(<!-- end of list -->)", re.DOTALL)


def text() -> str:
    """Return the index with the list as it has to be."""
    lines = []
    for path in sorted(FOLDER.glob("[0-9]*.md")):
        heading = path.read_text().partition("\n")[0].removeprefix("# ").removeprefix(f"{path.name[:4]}: ")
        entry = f"- [{path.name[:4]}]({path.name}): {heading}"
        lines += textwrap.wrap(entry, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return _LIST.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], INDEX.read_text())


if __name__ == "__main__":
    INDEX.write_text(text())
