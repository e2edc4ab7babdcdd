"""Namespaces, addresses, the router's own firewall, and everything that runs in them.

    client  192.168.56.10 ─┐                                    ┌─ outside   203.0.113.10  (servers)
    client2 192.168.56.11 ─┴─ eth1 .2  router  eth0 203.0.113.2 ┴─ stranger  203.0.113.66

The role "inside" is the client. IPv6 likewise: fd00:56::/64 inside, 2001:db8:113::/64 outside. Outside has no route to
the inside, so that only what is really translated comes back.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, TypeVar

import tomli_w

from tests.lab import firewall, namespaces, servers
from tests.lab.gateway import Gateway
from tests.lab.namespaces import run_ip, within

Role = Literal["inside", "client2", "router", "outside", "stranger", "upper"]
ROLES: tuple[Role, ...] = ("inside", "client2", "router", "outside", "stranger")

PATIENCE = float(os.environ.get("LAB_PATIENCE", "1"))
CLIENT4, CLIENT6 = "192.168.56.10", "fd00:56::10"
CLIENT2_4, CLIENT2_6 = "192.168.56.11", "fd00:56::11"
ROUTER_IN4, ROUTER_IN6 = "192.168.56.2", "fd00:56::2"
ROUTER_OUT4, ROUTER_OUT6 = "203.0.113.2", "2001:db8:113::2"
SERVER4, SERVER6 = "203.0.113.10", "2001:db8:113::10"
STRANGER4, STRANGER6 = "203.0.113.66", "2001:db8:113::66"
INSIDE_NETWORKS = ["192.168.56.0/24", "fd00:56::/64"]

T = TypeVar("T")


class LabError(AssertionError):
    """Something in the lab did not go as it must; the message holds what the programs said."""


class Lab:
    """Five namespaces with the router's firewall, from `__enter__` to `__exit__`, which leaves nothing.

    `strict`: the router forwards nothing from inside to outside but TCP to port 21, so that every data connection has
    to be admitted by the gateway. `input_drop`: its INPUT policy is DROP too. `nat4`, `nat6`: it masquerades the
    family; without `nat6` the outside has a route to the inside network instead. `logs`: where log files go (default:
    below `tmp`).
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        input_drop: bool = False,
        nat4: bool = True,
        nat6: bool = True,
        logs: Path | None = None,
    ) -> None:
        self.strict, self.input_drop, self.nat4, self.nat6 = strict, input_drop, nat4, nat6
        self.prefix = namespaces.new_prefix()
        # Not below pytest's directories, which only root may enter: servers drop their privileges.
        self.tmp = Path(tempfile.mkdtemp(prefix="algate-lab-"))
        self.tmp.chmod(0o755)
        self.logs = logs or self.tmp / "log"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.gateways: list[Gateway] = []
        self._tracked: list[subprocess.Popen[bytes]] = []
        self._counter = 0
        self._baseline: list[str] = []

    # --- building and removing ---

    def __enter__(self) -> Lab:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ns(self, role: Role) -> str:
        """The name of a role's network namespace."""
        return self.prefix + role

    def _build(self) -> None:
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: it needs root")
        namespaces.add(*map(self.ns, ROLES))
        for role in ROLES:
            settings = ["net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0"]
            settings += ["net.ipv6.conf.default.accept_ra=0"]
            if role == "router":
                settings += ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
            self.run(role, ["sysctl", "-qw", *settings])
        inside, outside = self.ns("inside"), self.ns("outside")
        # The switch of each side is a bridge that is also the interface of the main host of that side: one hop less.
        bridge = "link add eth0 type bridge forward_delay 0 mcast_snooping 0"
        run_ip([bridge], inside)
        run_ip([bridge], outside)
        run_ip([f"link add eth0 type veth peer name p2 netns {inside}"], self.ns("client2"))
        run_ip([f"link add eth0 type veth peer name p2 netns {outside}"], self.ns("stranger"))
        router = [f"link add eth1 type veth peer name p1 netns {inside}"]
        router += [f"link add eth0 type veth peer name p1 netns {outside}"]
        router += [*_addresses("eth1", ROUTER_IN4, ROUTER_IN6), *_addresses("eth0", ROUTER_OUT4, ROUTER_OUT6)]
        run_ip(router, self.ns("router"))
        for name in (inside, outside):
            run_ip([f"link set {port} master eth0 up" for port in ("p1", "p2")], name)
        hosts: dict[Role, tuple[str, str]] = {
            "inside": (CLIENT4, CLIENT6),
            "client2": (CLIENT2_4, CLIENT2_6),
            "outside": (SERVER4, SERVER6),
            "stranger": (STRANGER4, STRANGER6),
        }
        for role, (v4, v6) in hosts.items():
            commands = _addresses("eth0", v4, v6)
            if role in ("inside", "client2"):
                commands += [f"route add default via {ROUTER_IN4}", f"route add ::/0 via {ROUTER_IN6}"]
            elif not self.nat6:
                commands += [f"route add {INSIDE_NETWORKS[1]} via {ROUTER_OUT6}"]
            run_ip(commands, self.ns(role))
        for role in ROLES:
            # A bridge that has just got its ports takes up to a second.
            for address in (ROUTER_IN4, ROUTER_IN6) if role in ("inside", "client2") else (ROUTER_OUT4, ROUTER_OUT6):
                self.wait_for(partial(self._answers, role, address), 10, f"{role} to reach {address}")
        firewall.load(self)
        self._baseline = firewall.state(self)

    def _answers(self, role: Role, address: str) -> bool:
        try:
            self.connect(role, address, 9, timeout=0.2).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End every process, remove every namespace and file. Raises LabError if anything stays."""
        for process in reversed(self._tracked):
            self.stop(process)
        namespaces.remove(*namespaces.named(self.prefix))
        shutil.rmtree(self.tmp, ignore_errors=True)
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        if namespaces.named(self.prefix) or self.prefix in links or self.tmp.exists():
            raise LabError(f"the lab {self.prefix} left something: {namespaces.named(self.prefix)} {self.tmp}")

    def leftovers(self) -> list[str]:
        """What lives in the namespaces although nobody who is meant to run has it; empty is well.

        While no gateway runs, the router's netfilter rules have to be as they were before the first one.
        """
        alive = {process.pid for process in self._tracked if process.poll() is None}

        def strays() -> list[str]:
            pids = [pid for pid in namespaces.pids(*map(self.ns, ROLES)) if not _ancestors(pid) & alive]
            return [f"process {pid}: {_cmdline(pid)}" for pid in pids if _cmdline(pid)]

        found = strays()
        end = time.monotonic() + 2 * PATIENCE  # a process may be just about to end
        while found and time.monotonic() < end:
            time.sleep(0.01)
            found = strays()
        if not any(gateway.running for gateway in self.gateways):
            now = firewall.state(self)
            found += [f"new in netfilter: {line}" for line in now if line not in self._baseline]
            found += [f"gone from netfilter: {line}" for line in self._baseline if line not in now]
            found += [f"left in run_dir: {path}" for path in self.tmp.glob("run*/*")]
        return found

    # --- doing things in it ---

    def run(
        self,
        role: Role,
        argv: Sequence[str | Path],
        timeout: float = 30,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end in a role's namespace; LabError if it fails (unless not `check`) or takes longer."""
        command = ["ip", "netns", "exec", self.ns(role), *map(str, argv)]
        environment = {**os.environ, **env} if env else None
        source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=timeout * PATIENCE, env=environment, encoding="utf-8",
                errors="replace", check=False, **source,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{role}: {' '.join(command[4:])}: not done after {timeout:g} s: {error.stderr!r}") from None
        if check and done.returncode:
            said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            raise LabError(f"{role}: {' '.join(command[4:])}: exit {done.returncode}\n{said}{self.tail_of_logs()}")
        return done

    def popen(
        self,
        role: Role,
        argv: Sequence[str | Path],
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start a program in a role's namespace, in a session of its own; what it says goes to `log`.

        Its pid is the program's own. It is ended at the end of the lab at the latest.
        """
        self._counter += 1
        log = log or self.logs / f"{self._counter:02}-{Path(argv[0]).name}.log"
        environment = {**os.environ, **env} if env else None
        with log.open("ab") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.ns(role), *map(str, argv)],
                stdin=stdin, stdout=out, stderr=out, start_new_session=True, env=environment,
            )  # fmt: skip
        self._tracked.append(process)
        inode = os.stat(f"/run/netns/{self.ns(role)}").st_ino

        def inside() -> bool:
            with contextlib.suppress(OSError):
                return os.stat(f"/proc/{process.pid}/ns/net").st_ino == inode or process.poll() is not None
            return process.poll() is not None

        self.wait_for(inside, 5, f"{argv[0]} to enter the namespace of {role}")
        return process

    def stop(self, process: subprocess.Popen[bytes], timeout: float = 5) -> int:
        """SIGTERM to the program; after `timeout` seconds, and for its process group, SIGKILL. The exit code."""
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process in self._tracked:
            self._tracked.remove(process)
        return process.wait(5)

    @staticmethod
    def wait_for(condition: Callable[[], T], deadline: float, what: str) -> T:
        """The first true value of `condition`, asked again and again for `deadline` seconds; else LabError.

        On a machine that is known to be slow (an emulated one) LAB_PATIENCE in the environment multiplies deadlines.
        """
        end = time.monotonic() + deadline * PATIENCE
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                raise LabError(f"waited {deadline:g} s in vain for {what}")
            time.sleep(0.01)

    @contextlib.contextmanager
    def enter(self, role: Role) -> Iterator[None]:
        """Sockets that this thread makes within belong to the role's namespace, for good."""
        with within(self.ns(role)):
            yield

    def connect(self, role: Role, host: str, port: int, timeout: float = 5, source_port: int = 0) -> socket.socket:
        """A TCP connection from a role's namespace. OSError as of `socket.create_connection`."""
        with self.enter(role):
            source = ("::" if ":" in host else "0.0.0.0", source_port) if source_port else None
            return socket.create_connection((host, port), timeout, source)

    def listen(self, role: Role, host: str, port: int = 0) -> socket.socket:
        """A listening TCP socket in a role's namespace; its `accept` gives up after 10 s."""
        with self.enter(role):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
        listener.settimeout(10)
        return listener

    # --- the gateway and the servers ---

    def write_config(self, **sections: Any) -> Path:
        """A configuration for the router, with `sections` laid over the lab's own (None removes a key); its path."""
        self._counter += 1
        base: dict[str, Any] = {
            "network": {"inside": list(INSIDE_NETWORKS), "inside_interfaces": ["eth1"]},
            "socks": {"listen": [f"{ROUTER_IN4}:1080", f"[{ROUTER_IN6}]:1080"]},
            "console": {"listen": ""},  # a process less for each of many gateways; its own tests turn it on
            "process": {"run_dir": str(self.tmp / f"run{self._counter}"), "workers": 2},
        }
        path = self.tmp / f"algate-{self._counter}.toml"
        path.write_text(tomli_w.dumps(_merged(base, sections)))
        return path

    def start_gateway(self, config: Path | None = None, deadline: float = 60, rules: bool = True) -> Gateway:
        """Apply the rules, start `algate run` in the router and wait until it says that it is ready."""
        gateway = Gateway(self, config or self.write_config())
        gateway.start(deadline, rules)
        return gateway

    def vsftpd(self, **options: str) -> servers.FtpServer:
        """vsftpd in `outside` on port 21, anonymous; `options` as in vsftpd.conf(5), laid over the lab's."""
        return servers.vsftpd(self, options)

    def pure_ftpd(self, *arguments: str) -> servers.FtpServer:
        """pure-ftpd in `outside` on port 21, one virtual user; further `arguments` as in pure-ftpd(8)."""
        return servers.pure_ftpd(self, arguments)

    def proftpd(self, *directives: str) -> servers.FtpServer:
        """proftpd in `outside` on port 21, one virtual user; further `directives` as in proftpd.conf(5)."""
        return servers.proftpd(self, directives)

    def dns(self, records: Mapping[str, Sequence[str]]) -> None:
        """A name server in `outside` with these names and addresses, which the router's processes use from now on.

        Call it before `start_gateway`: programs see the new resolv.conf when they start.
        """
        servers.dns(self, records)

    def tail_of_logs(self, lines: int = 15) -> str:
        """The last lines of every log, for the message of an error."""
        text = ""
        for path in sorted(self.logs.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            if tail:
                text += f"\n--- {path.name}\n" + "\n".join(tail)
        return text


def algate() -> Path:
    """The command that belongs to the Python that runs us."""
    return Path(sys.executable).parent / "algate"


def _addresses(interface: str, v4: str, v6: str) -> list[str]:
    return [
        f"addr add {v4}/24 dev {interface}",
        f"addr add {v6}/64 dev {interface} nodad",
        f"link set {interface} up",
    ]


def _ancestors(pid: int) -> set[int]:
    """The process and all above it."""
    found: set[int] = set()
    while pid > 1:
        found.add(pid)
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        pid = int(status.rpartition(")")[2].split()[1])
    return found


def _cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(copy.deepcopy(dict(base)))
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result
