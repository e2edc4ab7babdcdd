"""`python -m gateway.cli.reference docs|package DIR`: write the reference.

docs: docs/reference/ of this checkout, which is committed. package DIR: what a package installs below /usr/share.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gateway.cli.completion import SHELLS, completion_script
from gateway.cli.main import cli
from gateway.cli.reference import commands, configuration, events, metrics
from gateway.cli.reference.manual import pages

DOCS = Path(__file__).parents[3] / "docs" / "reference"
# Where the shells look for what completes a command.
_COMPLETIONS = {
    "bash": "bash-completion/completions/algate",
    "zsh": "zsh/vendor-completions/_algate",
    "fish": "fish/vendor_completions.d/algate.fish",
}


def documents() -> dict[str, str]:
    """Return the generated files of docs/reference/, by name."""
    return {
        "configuration.md": configuration.markdown(),
        "algate.toml.example": configuration.example(),
        "commands.md": commands.markdown(),
        "events.md": events.markdown(),
        "metrics.md": metrics.markdown(),
    }


def shared_files() -> dict[str, str]:
    """Return the files that a package installs, by their path below /usr/share."""
    files = {f"man/man{name[-1]}/{name}": page for name, page in pages().items()}
    files |= {_COMPLETIONS[shell]: completion_script(cli, shell) for shell in SHELLS}
    files["doc/algate/algate.toml.example"] = configuration.example()
    return files


def write(files: dict[str, str], directory: Path) -> None:
    """Write files below a directory."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main(arguments: list[str]) -> None:
    """Parse the command line and write what it asks for."""
    match arguments:
        case ["docs"]:
            write(documents(), DOCS)
        case ["package", directory]:
            write(shared_files(), Path(directory))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
