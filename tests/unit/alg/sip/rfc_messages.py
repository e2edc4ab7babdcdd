"""The messages of RFC 4475 and RFC 5118: tests/data/sip, byte for byte."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[3] / "data" / "sip"


def paths() -> list[Path]:
    return sorted(path for folder in ("rfc4475", "rfc5118") for path in (FOLDER / folder).glob("*"))


def read(name: str) -> bytes:
    """The message of RFC 4475 or RFC 5118 with that name."""
    found = [path for path in paths() if path.name in (name, f"{name}.dat")]
    assert len(found) == 1, name
    return found[0].read_bytes()
