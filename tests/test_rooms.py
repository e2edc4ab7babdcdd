"""The rooms: who may import what. Read off the source, so that no import hides in a function, or in a text."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "alg").rglob("*.py")) + sorted((ROOT / "gateway").rglob("*.py"))

IMPURE = ("gevent", "socket", "time", "random", "logging", "structlog", "select", "threading")
# (files, what they may not import, why)
RULES = [
    ("alg/", ("gateway", "os", *IMPURE), "alg/ is pure: no I/O, clock, log or chance"),
    ("gateway/model/", ("gevent", "socket", "time", "structlog"), "values have no I/O"),
    ("gateway/policy/", ("gevent", "socket", "time", "structlog"), "the policy is pure"),
    ("gateway/lease/", ("gevent", "socket", "time", "structlog"), "what a lease may be is decided by pure code"),
    ("gateway/front/auth/guard.py", ("gevent", "socket", "time", "structlog"), "guesses are counted by a pure table"),
    ("gateway/front/portmap/table.py", ("gevent", "socket", "time", "structlog"), "the table of mappings is pure"),
    ("gateway/front/packets/packet.py", ("gevent", "socket", "time", "structlog"), "codecs are pure"),
    ("gateway/config/access_file.py", ("gevent", "socket", "time", "structlog"), "the parser is pure"),
    ("gateway/observe/", ("alg.sip", "alg.ftp"), "what is shown is of no protocol: its module says it"),
    (
        "gateway/client/",
        ("gevent", "msgspec", "structlog", "click", "dns"),
        "the library needs the standard library only",
    ),
    *(
        (f"gateway/{room}/", ("gevent",), "these processes and tools run without gevent")
        for room in ("broker", "host", "supervisor", "config")
    ),
]
# What is below gets small values, so that it can be built and tested without a configuration.
READS_CONFIG = ("config", "process", "supervisor", "host", "cli")
PYROUTE2 = {"gateway/broker/messages.py"}
# Each row may import from the rows below it, never from those above or beside.
ROWS = [
    ("gateway.cli",),
    ("gateway.supervisor",),
    ("gateway.process",),
    ("gateway.front",),
    ("gateway.driver",),
    ("gateway.pinhole", "gateway.host"),
    ("gateway.flow", "gateway.broker"),
    ("gateway.net", "gateway.lease", "gateway.config", "gateway.console"),
    ("gateway.policy", "gateway.observe"),
    ("gateway.model", "gateway.client"),
    ("alg",),
]
# What has more than 15 attributes, or 7 parameters, and is not two all the same.
LARGE = {
    "gateway/broker/elements.py:Element.__init__": "the fields of a record, made fifty times for a call",
    "gateway/cli/trace.py:explain": "a parameter is an option of the command line",
    "gateway/client/proxy.py:Proxy.__new__": "the fields of a record",
    "gateway/flow/table.py:Flow": "a record: what is shown and logged of a flow",
    "gateway/front/packets/queue.py:PacketFront": "each message passes all of it, in compiled code",
    "gateway/front/packets/queue.py:PacketFront.__init__": "each is of another room",
    "gateway/front/socks/request.py:SocksRequest.__init__": "the fields of a request",
    "gateway/host/keeper.py:RulesKeeper": "the same events decide when to check, and what is restored",
    "gateway/lease/ports.py:PublicPorts.choose": "pure: the time, chance and the test of a port are arguments",
    "gateway/net/relay/splice.py:RelayHandle.__init__": "made for each connection, in compiled code",
    "gateway/observe/trace.py:Trace.add": "the fields of a line, called for each message",
    "gateway/policy/index.py:RuleIndex": "a table for each selector of a rule",
}
# Headers and other words of SIP that are no one else's; `Via`, `Contact` and `REGISTER` may be.
SIP_WORDS = re.compile(
    r"(?i:\b(call-id|cseq|record-route|max-forwards|session-expires|sip/2\.0|application/sdp)\b)"
    r"|\b(INVITE|PRACK)\b"
)


# Names of protocols that modules read, and of what only one of them has: FTP's transfers between servers, IRC's offers,
# SIP's calls and registrations. (A call of GRE is a kind of pinhole.)
PROTOCOL_WORDS = re.compile(
    r"(?<![a-z])(bittorrent|dcc|ftps?|fxp|irc|pptp|rtsp|sips?|tftp)(?![a-z])|algate_(calls|registrations)|call\.kick",
    re.IGNORECASE,
)
# Where they may stand in gateway/ all the same, and why. Nothing here decides by them how a flow is treated, but for
# the rules' command `fxp` and what the client's side reads.
NAMES_A_PROTOCOL = {
    "gateway/cli/": "commands, their help and what they print are for users",
    "gateway/client/programs/ftp.py": "an FTP client, for users",
    "gateway/client/engine/carry.py": "a program's connections are read without a configuration that names a module",
    "gateway/client/engine/program.py": "help of a command",
    "gateway/config/doubts.py": "the rules' command fxp is of the configuration, which is published",
    "gateway/config/rules.py": "the same: such a rule has to name both servers",
    "gateway/config/schema_rules.py": "the same: its description",
    "gateway/console/": "the page shows totals of published metrics",
    "gateway/host/checks.py": "what `algate doctor` prints is for users",
    "gateway/host/helpers.py": "the kernel's own helpers have names and ports of protocols",
    "gateway/host/trial.py": "what `algate doctor` prints is for users",
    "gateway/model/requests.py": "the rules' command fxp: a request of its own",
    "gateway/observe/events.py": "published events, with what they mean",
    "gateway/observe/metrics.py": "published metrics, with what they mean; modules fill them",
    "gateway/policy/": "the rules' command fxp is permitted by name only",
    "gateway/process/answers.py": "the published event call.kick",
    "gateway/process/packets.py": "the published event call.kick",
}


# What imports a module that a text names.
BY_TEXT = ("import_module", "__import__", "find_spec", "resolve_name", "run_module", "EntryPoint")
# A text that names a module of ours, as `importlib` and entry points take it.
MODULE_NAME = re.compile(r"(?:alg|gateway)(?:\.\w+)+(?::\w+)?")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file that stands."""
    yield from imports_of(ast.parse(path.read_text()), str(path))


def imports_of(tree: ast.AST, path: str) -> Iterator[str]:
    """Every module that a source imports: by a statement; by a call with a text, of which only the beginning may be
    constant; and what it names by a text that is a module of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from alg import ftp` imports alg.ftp.
            yield from (
                f"{node.module}.{alias.name}" if node.module in ("alg", "gateway") else node.module or ""
                for alias in node.names
            )
        elif isinstance(node, ast.Call) and _name_of(node.func) in BY_TEXT:
            yield from (
                text
                for argument in (*node.args, *(word.value for word in node.keywords))
                if (text := _beginning(argument))
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE_NAME.fullmatch(node.value):
            name = node.value.partition(":")[0]
            if (ROOT / f"{name.replace('.', '/')}.py").exists() or (ROOT / name.replace(".", "/")).is_dir():
                yield name


def _name_of(function: ast.expr) -> str:
    """`import_module` of `importlib.import_module`."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _beginning(node: ast.expr) -> str:
    """The constant beginning of a text, as a module: "alg.ftp" of "alg.ftp:Module" and of f"alg.ftp.{name}"."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    if isinstance(node, ast.BinOp):
        return _beginning(node.left)
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return text.partition(":")[0].rstrip(".")


@pytest.mark.parametrize(
    "line",
    [
        "import alg.ftp.session",
        "from alg.ftp.session import FtpModule",
        "from alg import ftp",
        "def late():\n    from alg.ftp import session",
        "import importlib\nimportlib.import_module('alg.ftp.session')",
        "import_module(name=f'alg.ftp.{x}')",
        "__import__('alg.ftp.' + x)",
        "EntryPoint('ftp', 'alg.ftp.session:FtpModule', 'algate.alg').load()",
        "name = 'alg.ftp.session'\nload(name)",
        "pkgutil.resolve_name('alg.ftp.session:FtpModule')",
    ],
)
def test_no_way_to_import_is_overlooked(line: str) -> None:
    assert any(within(module, "alg.ftp") for module in imports_of(ast.parse(line), "line"))


def test_a_text_about_a_module_is_no_import() -> None:
    source = "'alg.broken'\n'see alg.ftp.session'\nlog.info('alg.note')"
    assert not list(imports_of(ast.parse(source), "source"))


def protocols() -> set[str]:
    """The folders of the protocol modules, which the registry finds by their entry points."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    return {".".join(value.split(".")[:2]) for names in groups.values() for value in names.values()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_room_names_a_protocol_module(path: Path) -> None:
    """What reads a protocol is found by the registry, so that a module of others is as good as ours."""
    if path.is_relative_to(ROOT / "gateway"):
        wrong = {module for module in imports(path) for folder in protocols() if within(module, folder)}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}: alg.registry finds protocol modules"


def words_of(path: Path) -> Iterator[str]:
    """Every text, and every name that the code gives or uses, of a file."""
    yield from literals(path)
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)) | ast.alias(name=name):
                yield name
            case ast.Attribute(attr=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_room_knows_a_protocol_by_name(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if path.is_relative_to(ROOT / "gateway") and not any(name.startswith(place) for place in NAMES_A_PROTOCOL):
        found = sorted({word for word in words_of(path) if PROTOCOL_WORDS.search(word)})
        assert not found, f"{name} names a protocol: {found}. A module's class declares what it wants of the gateway"


@pytest.mark.parametrize("place", NAMES_A_PROTOCOL)
def test_what_may_name_a_protocol_does(place: str) -> None:
    """No exception stays when it is needed no more."""
    files = [path for path in MODULES if str(path.relative_to(ROOT)).startswith(place)]
    assert any(PROTOCOL_WORDS.search(word) for path in files for word in words_of(path)), f"{place}: {files}"


def test_the_protocol_modules_are_known() -> None:
    assert {"alg.ftp", "alg.sip", "alg.tftp"} <= protocols()


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def row_of(module: str) -> int | None:
    return next((i for i, row in enumerate(ROWS) if any(within(module, package) for package in row)), None)


def room_of(module: str) -> str:
    """`alg.socks.udp` is in the room `gateway.front`; all of `alg` is one room."""
    first, _, rest = module.partition(".")
    return first if first == "alg" else f"{first}.{rest.partition('.')[0]}"


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_configuration_is_read_at_the_top_only(path: Path) -> None:
    if path.relative_to(ROOT).parts[1] not in READS_CONFIG:
        assert not [module for module in imports(path) if within(module, "gateway.config")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    own = row_of(module)
    if module == "gateway":
        return
    assert own is not None, f"{module} is in no row"
    for target in imports(path):
        row = row_of(target)
        if row is not None and room_of(target) != room_of(module):
            assert row > own, f"{module} imports {target}, which is above or beside it"


def test_what_is_large_is_so_for_a_reason() -> None:
    """A new one of them is split, or is named above, with the reason."""
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    assert {where for _, _, where in rooms.large()} == LARGE.keys()


# Codecs of protocols whose RFCs use the same word, and the two faces of the library.
SHARED_NAMES = {"Announce", "Command", "Datagrams", "Listening", "Map", "MessageType", "Reply", "Request", "Result"}
SHARED_NAMES |= {"Wrong"}


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    doubled = {name: where for name, where in places.items() if len(where) > 1 and name not in SHARED_NAMES}
    assert not doubled, doubled


def test_what_the_words_name_is_in_the_code() -> None:
    """The last column of docs/words.md names modules, and classes in them."""
    rows = [line for line in (ROOT / "docs/words.md").read_text().splitlines() if line.startswith("| *")]
    assert len(rows) > 40
    for row in rows:
        for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", row.split("|")[3]):
            *module, last = name.split(".")
            whole = [ROOT.joinpath(base, *name.split(".")).with_suffix(".py") for base in ("gateway", "")]
            files = [ROOT.joinpath(base, *module).with_suffix(".py") for base in ("gateway", "")]
            texts = [file.read_text() for file in files if file.exists()]
            named = any(re.search(rf"^(class {last}\b|{last}\b)", text, re.MULTILINE) for text in texts)
            assert named or any(file.exists() for file in whole), f"{row}: there is no {name}"


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
        both = path.is_relative_to(ROOT / "alg" / "rtsp")
        shared = {"cseq", "application/sdp"} if both else set()
        found = [text for text in literals(path) if {word[0].lower() for word in SIP_WORDS.finditer(text)} - shared]
        assert not found, f"{path.relative_to(ROOT)} knows words of SIP: {found}"


def test_the_words_of_sip_are_found_where_they_are() -> None:
    found = {match[0].lower() for path in MODULES for text in literals(path) for match in SIP_WORDS.finditer(text)}
    assert {"call-id", "cseq", "invite", "session-expires"} <= found


@pytest.mark.parametrize("module", ["gateway.process.broker", "gateway.supervisor.supervisor", "gateway.cli.run"])
def test_privileged_processes_never_load_gevent(module: str) -> None:
    code = f"import sys, {module}; sys.exit('gevent' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_workers_never_load_pyroute2() -> None:
    code = "import sys, gateway.process.worker; sys.exit('pyroute2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
