"""The map of the rooms in docs/architecture.md: `python docs/rooms.py` draws diagrams/rooms.svg from the imports, and
`python docs/rooms.py figures` prints how many rooms, floors, arrows and circles there are, and what is large.

A room is a folder of `gateway/`, or `alg/`. Rooms stand in the rows of tests/test_rooms.py, and an arrow says that a
room imports from another one. A floor is a step of the longest chain of imports.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "diagrams" / "rooms.svg"
WIDTH, BOX_WIDTH, BOX_HEIGHT, ROW = 1040, 190, 46, 88
WHAT = {
    "cli": "the commands",
    "supervisor": "starts, replaces, hands over",
    "process": "entry modules of the children",
    "front": "where clients arrive",
    "driver": "feeds the modules",
    "pinhole": "the worker's backends",
    "host": "rules, doctor, this host",
    "flow": "from request to end",
    "broker": "the privileged process",
    "net": "sockets, names, relay",
    "lease": "what a pinhole may be",
    "config": "text in, values out",
    "console": "the operator's page",
    "policy": "who may do what",
    "observe": "what is written down",
    "model": "values that cross rooms",
    "client": "the library of programs",
    "alg": "protocols, pure",
}


def rows() -> list[tuple[str, ...]]:
    """The rows of rooms, the topmost first, as the test of the imports states them."""
    spec = importlib.util.spec_from_file_location("test_rooms", ROOT / "tests" / "test_rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[tuple[str, ...]] = module.ROWS
    return found


def room_of(module: str) -> str:
    first, _, rest = module.partition(".")
    return "alg" if first == "alg" else rest.partition(".")[0]


def arrows() -> set[tuple[str, str]]:
    """Which room imports from which other one."""
    found = set()
    for path in [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "alg").rglob("*.py")]:
        own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {(own, room_of(name)) for name in names if name.startswith(("gateway.", "alg."))}
    return {(source, target) for source, target in found if source != target and source in WHAT and target in WHAT}


def draw() -> str:
    """The picture, as SVG."""
    places: dict[str, tuple[float, float]] = {}
    layers = rows()
    for level, layer in enumerate(layers):
        names = [room_of(name) for name in layer]
        gap = WIDTH / len(names)
        for at, name in enumerate(names):
            places[name] = (gap * (at + 0.5), 24 + level * ROW)
    height = 24 + len(layers) * ROW
    style = (
        ".box{fill:#fff;stroke:#0d8a7d;stroke-width:1.5}.arrow{stroke:#0d8a7d;stroke-opacity:.28;fill:none}"
        "text{fill:#222;text-anchor:middle}.what{font-size:11px;fill:#555}.name{font-size:14px;font-weight:bold}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f"<style>{style}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#f7faf9"/>',
    ]
    for source, target in sorted(arrows()):
        (x1, y1), (x2, y2) = places[source], places[target]
        start, middle = y1 + BOX_HEIGHT, (y1 + BOX_HEIGHT + y2) / 2
        curve = f"M{x1:.0f} {start}C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2}"
        parts.append(f'<path class="arrow" d="{curve}"/>')
    for name, (x, y) in places.items():
        left = x - BOX_WIDTH / 2
        parts.append(f'<rect class="box" x="{left:.0f}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8"/>')
        parts.append(f'<text class="name" x="{x:.0f}" y="{y + 19}">{name}</text>')
        parts.append(f'<text class="what" x="{x:.0f}" y="{y + 36}">{WHAT[name]}</text>')
    return "\n".join([*parts, "</svg>", ""])


def figures() -> str:
    """The numbers of the house, and its large classes and functions, as text."""
    found = arrows()
    below = {name: {target for source, target in found if source == name} for name in WHAT}
    floors: dict[str, int] = {}
    left = dict(below)
    while ready := [name for name, targets in left.items() if targets <= floors.keys()]:
        for name in ready:
            floors[name] = 1 + max((floors[target] for target in left.pop(name)), default=0)
    level = {room_of(name): at for at, layer in enumerate(rows()) for name in layer}
    up = sum(level[target] <= level[source] for source, target in found)
    house = f"rooms {len(WHAT)}, floors {max(floors.values())}, arrows {len(found)}, in circles {len(left)}, up {up}"
    return "\n".join(
        [house, *(f"{number:3} {what} of {where}" for number, what, where in sorted(large(), reverse=True))]
    )


MOST_ATTRIBUTES, MOST_PARAMETERS = 15, 7
"""A class with more attributes, or a function with more parameters, is usually two."""


def large() -> Iterator[tuple[int, str, str]]:
    """Classes and functions beyond these numbers: how many, of what, and `FILE:NAME`. `self` is no parameter."""
    for path in sorted([*(ROOT / "gateway").rglob("*.py"), *(ROOT / "alg").rglob("*.py")]):
        tree = ast.parse(path.read_text())
        where = str(path.relative_to(ROOT))
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        methods = {part: node.name + "." for node in classes for part in node.body}
        for node in classes:
            if len(attributes(node)) > MOST_ATTRIBUTES:
                yield len(attributes(node)), "attributes", f"{where}:{node.name}"
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
                number = sum(argument.arg not in ("self", "cls") for argument in given)
                if number > MOST_PARAMETERS:
                    yield number, "parameters", f"{where}:{methods.get(function, '')}{function.name}"


def attributes(node: ast.ClassDef) -> set[str]:
    """The names that a class sets on `self`. What only declares fields is a record, and no limit is useful for it."""
    return {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute)
        and isinstance(part.ctx, ast.Store)
        and isinstance(part.value, ast.Name)
        and part.value.id == "self"
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["figures"]:
        print(figures())
    else:
        TARGET.write_text(draw())
