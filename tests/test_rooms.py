"""The rooms: who may import what. Read off the source, so that no import hides in a function."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "alg").rglob("*.py")) + sorted((ROOT / "gateway").rglob("*.py"))

# (files, what they may not import, why)
RULES = [
    (
        "alg/",
        ("gateway", "gevent", "socket", "time", "random", "logging", "structlog", "select", "os", "threading"),
        "alg/ is pure: no I/O, clock, log or chance",
    ),
    ("gateway/observe/", ("alg.sip", "alg.ftp"), "what is shown is of no protocol: its module says it"),
    ("gateway/access_file.py", ("gevent", "socket", "time", "structlog"), "the parser is pure"),
    ("gateway/rule_limits.py", ("gevent", "socket", "time", "structlog"), "the counters are pure"),
    ("gateway/shares.py", ("gevent", "socket", "time", "structlog"), "what flows share is counted by a pure table"),
    ("gateway/upstream_wire.py", ("gevent", "socket", "time", "structlog"), "codecs are pure"),
    ("gateway/policy", ("gevent", "socket", "time", "structlog"), "the policy is pure"),
    ("gateway/front/socks4.py", ("gevent", "socket", "time", "structlog"), "codecs are pure"),
    ("gateway/front/socks5.py", ("gevent", "socket", "time", "structlog"), "codecs are pure"),
    ("gateway/front/password.py", ("gevent", "socket", "time", "structlog"), "codecs are pure"),
    ("gateway/front/gssapi_codec.py", ("gevent", "socket", "time", "structlog"), "codecs are pure"),
    ("gateway/guard.py", ("gevent", "socket", "time", "structlog"), "who guesses is counted by a pure table"),
    ("gateway/users.py", ("gevent", "socket", "time", "structlog"), "the users file is text"),
    ("gateway/front/udp_packet.py", ("gevent", "socket", "time", "structlog"), "codecs are pure"),
    ("gateway/front/socks5_udp.py", ("gevent", "socket", "time", "structlog"), "codecs are pure"),
    ("gateway/pinhole/lease.py", ("gevent", "socket", "time", "structlog"), "the lease table is pure"),
    ("gateway/broker/validate.py", ("gevent", "socket", "time", "structlog"), "validation is pure"),
    ("gateway/broker/protocol.py", ("gevent", "socket", "time", "structlog"), "the protocol is pure"),
]
BROKER = ("server", "engine", "usage", "stale", "netfilter", "netlink", "conntrack", "elements")
PRIVILEGED = {f"gateway/broker/{name}.py" for name in BROKER}
PYROUTE2 = {"gateway/broker/netfilter.py", "gateway/broker/conntrack.py"}
# Each line may import from the ones below it, never from those above.
LAYERS = [
    ("gateway.reference",),
    ("gateway.cli",),
    ("gateway.process",),
    ("gateway.front", "gateway.doctor", "gateway.doctor_host"),
    ("gateway.flow_runner", "gateway.audit"),
    ("gateway.inspection",),
    ("gateway.activity",),
    ("gateway.dial", "gateway.quick_dial", "gateway.pinhole", "gateway.pinhole_requests", "gateway.conversations"),
    ("gateway.flow",),
    ("gateway.rule_limits", "gateway.shares", "gateway.upstream"),
    ("gateway.relay", "gateway.resolve", "gateway.policy", "gateway.broker"),
    ("gateway.config_file", "gateway.config_check", "gateway.rehearsal"),
    ("gateway.policy_index", "gateway.access_file"),
    ("gateway.policy_rules",),
    ("gateway.config", "gateway.observe", "gateway.sockets", "gateway.own_address"),
    ("gateway.config_rules",),
    ("gateway.passwords", "gateway.ident", "gateway.guard", "gateway.users"),
    ("gateway.upstream_wire", "gateway.urgency", "gateway.config_messages", "gateway.finding", "gateway.privilege"),
    ("gateway.model", "gateway.errors", "gateway.embedded", "gateway.host_name"),
    ("alg",),
]
# Headers and other words of SIP that are no one else's; `Via`, `Contact` and `REGISTER` may be.
SIP_WORDS = re.compile(
    r"(?i:\b(call-id|cseq|record-route|max-forwards|session-expires|sip/2\.0|application/sdp)\b)"
    r"|\b(INVITE|PRACK)\b"
)
# Pure data that an outer room owns and an inner one needs to name.
ALLOWED = {
    ("gateway.broker.engine", "gateway.pinhole.lease"),
    ("gateway.broker.usage", "gateway.pinhole.lease"),
    ("gateway.broker.server", "gateway.pinhole.rate"),
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file that stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer_of(module: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if any(within(module, package) for package in layer)), None)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_stays_in_its_room(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    imported = list(imports(path))
    for files, banned, why in RULES:
        if name.startswith(files):
            wrong = [module for module in imported if any(within(module, package) for package in banned)]
            assert not wrong, f"{name} imports {wrong}: {why}"
    if name not in PYROUTE2:
        assert not [m for m in imported if within(m, "pyroute2")], (
            f"{name}: only what talks to netfilter needs pyroute2"
        )
    if name in PRIVILEGED or name == "gateway/process/supervisor.py":
        assert not [m for m in imported if within(m, "gevent")], f"{name} must not use gevent"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_inwards(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    own = layer_of(module)
    if module == "gateway":
        return
    assert own is not None, f"{module} is in no layer"
    for target in imports(path):
        layer = layer_of(target)
        if layer is not None and (module, target) not in ALLOWED:
            assert layer >= own, f"{module} imports {target}, which is further out"


def literals(path: Path) -> Iterator[str]:
    """Every text and every bytes of a file, but for what stands there to be read (docstrings)."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in prose:
            if isinstance(node.value, str):
                yield node.value
            elif isinstance(node.value, bytes):
                yield node.value.decode("latin-1")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_of_sip_are_known_in_its_room_only(path: Path) -> None:
    if not path.is_relative_to(ROOT / "alg" / "sip"):
        found = [text for text in literals(path) if SIP_WORDS.search(text)]
        assert not found, f"{path.relative_to(ROOT)} knows words of SIP: {found}"


def test_the_words_of_sip_are_found_where_they_are() -> None:
    found = {match[0].lower() for path in MODULES for text in literals(path) for match in SIP_WORDS.finditer(text)}
    assert {"call-id", "cseq", "invite", "max-forwards"} <= found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_not_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("module", ["gateway.process.broker", "gateway.process.supervisor"])
def test_privileged_processes_never_load_gevent(module: str) -> None:
    code = f"import sys, {module}; sys.exit('gevent' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_workers_never_load_pyroute2() -> None:
    code = "import sys, gateway.process.worker; sys.exit('pyroute2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
