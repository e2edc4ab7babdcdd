"""Programs of a checkout below a home that only its owner may enter, run by another user."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The folder is built at a place of its own first, from which what lies below the private one can still be seen.
_SHOW = """
umask 022
private=$1 aside=/sys # where no checkout lies
shift
mount -t tmpfs -o mode=755 tmpfs "$aside"
while [ "$1" != -- ]; do
    mkdir -p "$aside/${1#"$private"/}"
    mount --bind "$1" "$aside/${1#"$private"/}"
    shift
done
shift
mount --rbind "$aside" "$private"
umount -l "$aside"
cd "$PWD" 2>/dev/null || cd /
exec "$@"
"""


def shown(*folders: Path) -> list[str]:
    """Words before a command, in a mount namespace of its own (`ip netns exec` makes one), with which users who are not
    root get to `folders`, at their own paths: over each private folder on the way lies one that has nothing else in it.

    Without `folders`: this checkout and its Python. No words for what everybody may get to anyway.
    """
    wanted = folders or (ROOT, Path(sys.prefix), Path(sys.base_prefix))
    below: dict[Path, list[Path]] = {}
    for folder in wanted:
        private = next(_private(folder), None)
        if private is not None:
            below.setdefault(private, []).append(folder)
    words: list[str] = []
    for private, inside in below.items():
        words += ["sh", "-ec", _SHOW, "sh", str(private), *map(str, _outermost(inside)), "--"]
    return words


def _private(folder: Path) -> Iterator[Path]:
    """The folders above it that not everybody may enter, outermost first."""
    for above in reversed(folder.parents):
        if not os.stat(above).st_mode & stat.S_IXOTH:
            yield above


def _outermost(folders: list[Path]) -> list[Path]:
    """Those that do not lie below another one of them."""
    unique = list(dict.fromkeys(folders))
    return [one for one in unique if not any(other in one.parents for other in unique)]
