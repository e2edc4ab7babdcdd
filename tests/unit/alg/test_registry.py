"""alg.registry: our own module is found, that of another package too, and a broken one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from alg.api import Mode
from alg.ftp.session import FtpModule
from alg.registry import BrokenModule, modules, shown_tables
from gateway.config.load import parse_config

GOPHER = "class Module:\n    def handle(self, event): return []\n    def deadline(self): return None\n"


def install(at: Path, entry: str, source: str = "", name: str = "thirdparty") -> None:
    """What an installer leaves of a package that adds a protocol."""
    info = at / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[algate.alg]\n{entry}\n")
    (at / f"{name}_alg.py").write_text(source)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_ftp_is_there() -> None:
    assert modules()["ftp"] is FtpModule


def test_another_package_adds_one(site: Path) -> None:
    source = "class Gopher:\n    def handle(self, event): return []\n    def deadline(self): return None\n"
    install(site, "gopher = gopher1_alg:Gopher", source, "gopher1")
    assert modules()["gopher"].__name__ == "Gopher"
    assert modules()["ftp"] is FtpModule


@pytest.mark.parametrize(
    ("name", "source", "why"),
    [
        ("broken1", "raise RuntimeError('out of order')", "RuntimeError: out of order"),
        ("broken2", "", "AttributeError"),
        ("broken3", "Module = 7", "not a class"),
        ("broken4", "class Module:\n    def handle(self, event): return []", r"no method deadline\(\)"),
        ("broken5", "import sys; sys.exit('not here')", "SystemExit: not here"),
        ("broken6", f"{GOPHER}    kinds = 'once'", "kinds are no list of names"),
        ("broken7", f"{GOPHER}    kinds = ('everything',)", "'everything' as a kind of pinholes; there are once"),
        ("broken8", f"{GOPHER}    tables = 7", "tables are no list of names"),
        ("broken9", f"{GOPHER}    most_held = 'much'", "most_held is 'much', and no number above 0"),
        ("broken10", f"{GOPHER}    class Options: port = 7", "Options are no dataclass"),
        ("broken11", f"{GOPHER}    default_ports = 70", "default_ports are no list of ports"),
        ("broken12", f"{GOPHER}    default_ports = (70, 70000)", "default_ports are no list of ports"),
        ("broken13", f"{GOPHER}    default_mode = 'on'", "default_mode is 'on', and none of rewrite, observe, off"),
    ],
)
def test_a_broken_one_is_named(site: Path, name: str, source: str, why: str) -> None:
    install(site, f"gopher = {name}_alg:Module", source, name)
    with pytest.raises(BrokenModule, match=f"'gopher'.*{name}.*{why}"):
        modules()


@pytest.mark.parametrize("look_every", ["property(lambda self: 2.0)", "None", "2", "0.5"])
def test_what_an_instance_says_is_not_judged_by_its_class(site: Path, look_every: str) -> None:
    name = f"late{abs(hash(look_every))}"
    install(site, f"gopher = {name}_alg:Module", f"{GOPHER}    look_every = {look_every}", name)
    assert "gopher" in modules()


def test_what_a_class_says_of_its_section(site: Path) -> None:
    """It holds where the section says nothing. A module of another package needs a section, to be used at all."""
    source = f"{GOPHER}    default_ports = (70,)\n    default_mode = 'observe'\n"
    install(site, "gopher = declares_alg:Module", source, "declares")
    assert "gopher" not in parse_config("", "none").alg
    section = parse_config("[alg.gopher]", "empty").alg["gopher"]
    assert (section.ports, section.mode, section.transports) == ((70,), Mode.OBSERVE, ("tcp",))
    section = parse_config('[alg.gopher]\nports = [7070]\nmode = "off"', "full").alg["gopher"]
    assert (section.ports, section.mode) == ((7070,), Mode.OFF)


def test_a_name_is_taken_once(site: Path) -> None:
    install(site, "ftp = rival_alg:Module", "", "rival")
    with pytest.raises(BrokenModule, match="two protocol modules are named 'ftp'"):
        modules()


def test_what_one_process_cannot_load_hides_nothing_of_the_others(site: Path) -> None:
    """Another process could load it; this one answers for all that it has."""
    install(site, "gopher = unreadable_alg:Module", "raise PermissionError('not for this user')", "unreadable")
    assert "calls" in shown_tables()
