"""`algate modules`: shows which protocol modules are installed, and how the configuration uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from alg.registry import installed
from gateway.cli.options import config_option, json_option
from gateway.cli.output import show_rows
from gateway.config.load import load_config


@click.command()
@config_option
@json_option
def modules(config_path: str | None, as_json: bool) -> None:
    """Show the protocol modules that are installed.

    Shows modules of other packages too, and modules that cannot be used, with the reason. `kinds` are the kinds of
    pinholes that a module may ask for.

    \b
    Examples:
      algate modules
      algate modules --json
    """
    sections = load_config(config_path).alg
    rows: list[dict[str, Any]] = []
    for module in installed():
        section = sections.get(module.name)
        rows.append(
            {
                "name": module.name,
                "package": f"{module.package} {module.version}".strip(),
                "api": module.api,
                "transports": list(module.transports),
                "ports": list(section.ports) if section is not None else [],
                "mode": section.mode.value if section is not None else "off",
                "kinds": list(module.kinds),
                "problem": module.problem,
            }
        )

    def listed(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: ",".join(map(str, row[key])) or "-"

    columns = ["name", "package", "api", "transports", "ports", "mode", "kinds", "problem"]
    show_rows(rows, as_json, columns, transports=listed("transports"), ports=listed("ports"), kinds=listed("kinds"))
