"""The list of decisions in docs/decisions/README.md: `python docs/decisions.py` writes it from their headings, below
the topic that each of them names (`Topic: ...`)."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "decisions"
INDEX = FOLDER / "README.md"
TOPICS = (
    "The house: rooms, tests, releases",
    "Processes, and how they live and change",
    "Pinholes in the kernel",
    "Flows, and what carries them",
    "SOCKS, rules and limits",
    "Protocol modules",
    "Ports that clients ask for",
    "The client's side",
    "Other",
)
"""In the order of the list. What names no topic is under the last of them."""

_TOPIC = re.compile(r"^Topic: (.*)$", re.MULTILINE)
_LIST = re.compile(r"(<!-- list: [^\n]*-->\n).*?(<!-- end of list -->)", re.DOTALL)


def topic(path: Path) -> str:
    """Return the topic of a decision. Raises ValueError if it names an unknown one."""
    found = _TOPIC.search(path.read_text())
    name = found[1] if found else TOPICS[-1]
    if name not in TOPICS:
        raise ValueError(f"{path.name}: there is no topic {name!r}")
    return name


def text() -> str:
    """Return the index with the list as it has to be."""
    lines: list[str] = []
    decisions = sorted(FOLDER.glob("[0-9]*.md"))
    for name in TOPICS:
        paths = [path for path in decisions if topic(path) == name]
        if paths:
            lines += ["", f"### {name}", ""] if lines else [f"### {name}", ""]
        for path in paths:
            heading = path.read_text().partition("\n")[0].removeprefix("# ").removeprefix(f"{path.name[:4]}: ")
            entry = f"- [{path.name[:4]}]({path.name}): {heading}"
            lines += textwrap.wrap(entry, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return _LIST.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], INDEX.read_text())


if __name__ == "__main__":
    INDEX.write_text(text())
