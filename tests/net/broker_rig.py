"""Three throw-away namespaces with a real broker in the middle one; what the tests of the kernel pinholes stand on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from alg.address import Endpoint
from alg.api import PINHOLE_KINDS
from gateway.broker.elements import KEYS
from gateway.broker.marks import ADMITTED
from gateway.config.load import parse_config
from gateway.lease.messages import (
    MAX_PACKET,
    FromWorker,
    LeaseOpened,
    Open,
    ToWorker,
    decode_to_worker,
    encode,
)
from gateway.model.requests import Lease, PinholeRequest
from gateway.observe.admin import Rows, ask
from gateway.process import lifeline
from gateway.process.boot import Boot
from tests.lab import namespaces
from tests.lab.lab import Lab
from tests.lab.namespaces import run_ip, within

ROOT = Path(__file__).resolve().parents[2]
CLIENT, PUBLIC, SERVER, STRANGER = "192.168.56.10", "203.0.113.1", "203.0.113.5", "203.0.113.6"
CLIENT6, PUBLIC6, SERVER6, STRANGER6 = "fd00:56::10", "2001:db8::1", "2001:db8::5", "2001:db8::6"
SLOTS = 2

PRIVILEGES = ["--clear-groups", "--no-new-privs", "--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin"]
PRIVILEGES += ["--bounding-set=-all,+net_admin"]

_T = TypeVar("_T")


def wait_for(condition: Callable[[], _T], what: str, timeout: float = 10.0) -> _T:
    """The first true value of `condition`, asked again and again; LabError after `timeout` seconds."""
    return Lab.wait_for(condition, timeout, what)


def _old_nft(folder: Path) -> list[str]:
    """What to begin a command with, so that it finds an nft like that of a kernel before 6.5: a rule must not look for
    a key in a map without taking its data. `folder`: where everybody may look."""
    nft, real, own = shutil.which("nft") or "/usr/sbin/nft", folder / "real-nft", folder / "old-nft"
    shutil.copy(nft, real)
    own.write_text(
        f"""#!/bin/sh
[ "$1 $2" = "-f -" ] || exec {real} "$@"
text=$(cat)
if printf '%s\\n' "$text" | grep -Pq '(?<! map )@({"|".join(KEYS)})\\b'; then
    echo 'Error: Could not process rule: Invalid argument' >&2
    exit 1
fi
printf '%s\\n' "$text" | exec {real} "$@"
"""
    )
    own.chmod(0o755)
    # In the mount namespace that `ip netns exec` makes.
    return ["sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(own), nft]


class Rig:
    """inside (client) -- router (broker) -- outside (server, stranger), with a FORWARD policy of DROP."""

    def __init__(
        self,
        run_dir: Path,
        per_client: int = 64,
        ports: str = "40000-40999",
        rate: float = 1e5,
        log: Path | None = None,
        restore: bool = True,
        kinds: tuple[str, ...] = PINHOLE_KINDS,
        inside: tuple[str, ...] = ("192.168.56.0/24", "fd00:56::/64"),
        old_kernel: bool = False,
    ) -> None:
        """`old_kernel`: the broker's nft refuses what Linux before 6.5 refuses, in the same words."""
        self.kinds = kinds
        self._open_folder = contextlib.ExitStack()
        self._nft: list[str] = []
        if old_kernel:
            folder = Path(self._open_folder.enter_context(tempfile.TemporaryDirectory(prefix="algate-old-nft-")))
            folder.chmod(0o755)
            self._nft = _old_nft(folder)
        prefix = namespaces.new_prefix()
        self.inside, self.router, self.outside = (f"{prefix}{end}" for end in ("inside", "router", "outside"))
        self.table = "algate"
        self._log = log
        toml = f'[network]\ninside = {msgspec.json.encode(inside).decode()}\n[pinhole]\nports = "{ports}"\n'
        toml += f'per_client = {per_client}\nrate = {rate}\nbackend = "kernel"\n'
        toml += f"[rules]\nrestore = {str(restore).lower()}\n"
        self._config = parse_config(toml, "rig")
        self._pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(SLOTS)]
        self.workers = [theirs for _, theirs in self._pairs]
        for worker in self.workers:
            worker.settimeout(5)
        self._admin_path = run_dir / "broker.sock"
        self._admin = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._admin.bind(str(self._admin_path))
        self._admin.listen()
        self.broker: subprocess.Popen[bytes] | None = None
        self.lifeline: socket.socket | None = None
        self._open: list[socket.socket] = []
        self.ids = iter(range(1, 1 << 30))
        self._heard: list[deque[ToWorker]] = [deque() for _ in range(SLOTS)]

    def __enter__(self) -> Rig:
        """With its network, and a broker that is ready."""
        try:
            self.build()
            self.start()
        except BaseException:
            self.destroy()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    # --- network ----------------------------------------------------------------------------------------------------

    def build(self) -> None:
        namespaces.add(self.inside, self.router, self.outside)
        for namespace in (self.inside, self.router, self.outside):
            self.at(namespace, "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.dad_transmits=0")
        ends = (("in", self.inside), ("out", self.outside))
        run_ip([f"link add {end} type veth peer eth0 netns {namespace}" for end, namespace in ends], self.router)
        addresses = [
            (self.inside, "eth0", f"{CLIENT}/24 {CLIENT6}/64"),
            (self.router, "in", "192.168.56.1/24 fd00:56::1/64"),
            (self.router, "out", f"{PUBLIC}/24 {PUBLIC6}/64"),
            (self.outside, "eth0", f"{SERVER}/24 {STRANGER}/24 {SERVER6}/64 {STRANGER6}/64"),
        ]
        for namespace, device, texts in addresses:
            own = [f"address add {text} dev {device} {'nodad' if ':' in text else ''}" for text in texts.split()]
            run_ip([f"link set {device} up", *own], namespace)
        run_ip(["route add default via 192.168.56.1", "route add ::/0 via fd00:56::1"], self.inside)
        self.at(self.router, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        for device in ("in", "out"):
            # Without its link-local address the router cannot ask for a neighbour.
            settled = f"ip -6 address show dev {device} scope link -tentative"
            wait_for(lambda command=settled: self.at(self.router, command), "a link-local address")  # type: ignore[misc]
        for iptables in ("iptables", "ip6tables"):
            self.at(self.router, f"{iptables} -P FORWARD DROP")
            self.at(self.router, f"{iptables} -A FORWARD -m connmark --mark {ADMITTED:#x}/{ADMITTED:#x} -j ACCEPT")
            self.at(self.router, f"{iptables} -t nat -A POSTROUTING -o out -j MASQUERADE")

    def destroy(self) -> None:
        self.kill()
        self._open_folder.close()
        for sock in [*self._open, self._admin, *(end for pair in self._pairs for end in pair)]:
            sock.close()
        namespaces.remove(*namespaces.named(self.router.removesuffix("router")))

    def at(self, namespace: str, command: str) -> str:
        """Run a command in a namespace; its output."""
        return run("ip", "netns", "exec", namespace, *command.split())

    def within(self, namespace: str, action: Callable[[], _T]) -> _T:
        """Do something in a namespace: sockets that are made stay there."""
        with within(namespace):
            return action()

    def listen(self, namespace: str, host: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self.within(namespace, lambda: socket.create_server((host, port), family=family, backlog=512))
        sock.settimeout(5)
        self._open.append(sock)
        return sock

    def connect(self, namespace: str, to: Endpoint, source: str, timeout: float = 2.0) -> socket.socket:
        """A connection from an address of a namespace. ConnectionRefusedError or TimeoutError if there is none."""
        sock = self.within(
            namespace, lambda: socket.create_connection((to.host, to.port), timeout, source_address=(source, 0))
        )
        self._open.append(sock)
        return sock

    # --- broker -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a broker as the supervisor does, in the router; returns when it is ready."""
        self.lifeline, theirs = lifeline.pair()
        boot = Boot(
            role="broker",
            slot=0,
            config=self._config,
            lifeline=theirs.fileno(),
            admin=self._admin.fileno(),
            workers={slot: ours.fileno() for slot, (ours, _) in enumerate(self._pairs)},
            kinds=dict.fromkeys(range(len(self._pairs)), self.kinds),
        )
        memfd = boot.to_memfd()
        python = [sys.executable, "-m", "gateway.process.broker", str(memfd)]
        with open(self._log, "ab") if self._log else contextlib.nullcontext() as log:
            self.broker = subprocess.Popen(
                ["ip", "netns", "exec", self.router, *self._nft, "setpriv", *_user(), *PRIVILEGES, *python],
                pass_fds=[memfd, *boot.descriptors()],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=log,
            )
        os.close(memfd)
        theirs.close()
        self.lifeline.settimeout(15)
        assert lifeline.hear_child(self.lifeline) == lifeline.Ready()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the broker a signal and wait for its end; its exit code."""
        assert self.broker is not None
        assert self.lifeline is not None
        self.broker.send_signal(number)
        code = self.broker.wait(10)
        self.broker = None
        self.lifeline.close()
        return code

    def kill(self) -> None:
        if self.broker is not None:
            self.end(signal.SIGKILL)

    def send(self, message: FromWorker, slot: int = 0) -> None:
        self.workers[slot].send(encode(message))

    def hear(self, slot: int = 0) -> ToWorker:
        """The broker's next message to a worker."""
        heard = self._heard[slot]
        while not heard:
            heard.extend(decode_to_worker(self.workers[slot].recv(MAX_PACKET)))
        return heard.popleft()

    def ask(self, request: PinholeRequest, slot: int = 0) -> ToWorker:
        """Open a pinhole; the answer."""
        request_id = next(self.ids)
        self.send(Open(request_id, request), slot)
        answer = self.hear(slot)
        assert answer.id == request_id
        return answer

    def open(self, request: PinholeRequest, slot: int = 0) -> Lease:
        answer = self.ask(request, slot)
        assert isinstance(answer, LeaseOpened), answer
        return answer.lease

    def pinholes(self) -> Rows:
        return ask(str(self._admin_path), "pinholes", 5.0)

    def status(self) -> dict[str, Any]:
        (row,) = ask(str(self._admin_path), "status", 5.0)
        return row

    def count(self, name: str) -> int:
        """How many elements a set of the broker's table has."""
        maps = ("dnat", "snat", "many", "any", "map", "only", "held", "gre", "call")
        kind = "map" if name.startswith(maps) and "keys" not in name else "set"
        listing = msgspec.json.decode(self.at(self.router, f"nft -j list {kind} inet {self.table} {name}"))
        return sum(len(entry[kind].get("elem", ())) for entry in listing["nftables"] if kind in entry)

    def tables(self) -> str:
        return self.at(self.router, "nft list tables")


class Phones:
    """UDP sockets in the rig's namespaces; `close` ends them."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._sockets: list[socket.socket] = []

    def at(self, namespace: str, host: str, port: int = 0) -> socket.socket:
        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
            sock.settimeout(5)
            sock.bind((host, port))
            return sock

        sock = self._rig.within(namespace, make)
        self._sockets.append(sock)
        return sock

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def inbound(**changes: Any) -> PinholeRequest:
    """A good request: the server may connect to CLIENT:50000 within 60 s."""
    request = PinholeRequest(
        flow="w0-1",
        reason="ftp.port",
        client=CLIENT,
        direction="in",
        transport="tcp",
        target=Endpoint(CLIENT, 50000),
        peer=SERVER,
        public_host=PUBLIC,
        ttl=60.0,
    )
    return msgspec.structs.replace(request, **changes)


def outbound(**changes: Any) -> PinholeRequest:
    """A good request: the client may connect to SERVER:30000 within 60 s."""
    request = inbound(direction="out", reason="ftp.pasv", target=Endpoint(SERVER, 30000), peer=None, public_host=None)
    return msgspec.structs.replace(request, **changes)


def _user() -> list[str]:
    """As `daemon`, unless this checkout lies where daemon may not look: then as root without root's capabilities."""
    daemon = ["--reuid=daemon", "--regid=daemon"]
    test = ["setpriv", *daemon, *PRIVILEGES, "test", "-r", str(ROOT / "gateway/process/broker.py")]
    return daemon if subprocess.run(test, check=False).returncode == 0 else []
