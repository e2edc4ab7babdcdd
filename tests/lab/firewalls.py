"""Other people's firewalls in the lab's router: firewalld, ufw, dockerd and fail2ban as Debian has them (unpacked, not
installed), with a message bus and directories of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.lab.lab import Lab

PEERS = Path(sys.prefix, "peers")  # unpacked by `make setup`
PYTHON = "/usr/bin/python3"  # Debian's own: these programs' modules are made for it
_PACKAGES = PEERS / "usr/lib/python3/dist-packages"
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
  </policy>
</busconfig>
"""


class Firewalld:
    """firewalld in the router, which has been given no rules before; `close` ends it and takes its rules away."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        program = PEERS / "usr/sbin/firewalld"
        can = subprocess.run([PYTHON, "-c", "import dbus, gi"], capture_output=True, check=False)
        if not program.exists() or can.returncode or shutil.which("dbus-daemon") is None:
            pytest.skip("firewalld, dbus-daemon, python3-dbus or python3-gi is not there")
        self._settings = lab.tmp / "firewalld"
        shutil.copytree(PEERS / "etc/firewalld", self._settings)
        settings = self._settings / "firewalld.conf"
        settings.write_text(settings.read_text().replace("IPv6_rpfilter=yes", "IPv6_rpfilter=no"))
        bus = lab.tmp / "bus"
        config = lab.tmp / "bus.conf"
        config.write_text(_BUS.format(path=bus))
        libraries = PEERS / "usr/lib" / str(sysconfig.get_config_var("MULTIARCH"))
        self._env = {
            "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}",
            "PYTHONPATH": str(_PACKAGES),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GI_TYPELIB_PATH": str(libraries / "girepository-1.0"),
        }
        self._bus = lab.popen("router", ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"])
        lab.wait_for(bus.exists, 10, "the message bus")
        argv: list[str | Path] = [PYTHON, program, "--nofork", "--nopid", "--system-config", self._settings]
        argv += ["--default-config", PEERS / "usr/lib/firewalld", "--log-file", lab.logs / "firewalld.log"]
        self._daemon = lab.popen("router", argv, env=self._env)
        lab.wait_for(lambda: self.cmd("--state", check=False) == "running", 30, "firewalld")

    def cmd(self, *arguments: str, check: bool = True) -> str:
        """firewall-cmd; what it says."""
        argv: list[str | Path] = [PYTHON, PEERS / "usr/bin/firewall-cmd", *arguments]
        return self.lab.run("router", argv, check=check, env=self._env, timeout=60).stdout.strip()

    def close(self) -> None:
        self.lab.stop(self._daemon)
        self.lab.stop(self._bus)
        with contextlib.suppress(AssertionError):
            self.lab.run("router", ["nft", "delete", "table", "inet", "firewalld"])


class Ufw:
    """ufw in the router, with a root directory of its own."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        if not (PEERS / "usr/sbin/ufw").exists():
            pytest.skip("ufw is not there")
        self._root = lab.tmp / "ufw"
        for name in ("lib/ufw", "usr/share/ufw", "etc/ufw"):
            packed = name if (PEERS / name).exists() else f"usr/{name}"  # as of Debian 13, where /lib is /usr/lib
            shutil.copytree(PEERS / packed, self._root / name)
        (self._root / "etc/default").mkdir()
        shutil.copy(PEERS / "etc/default/ufw", self._root / "etc/default")
        for pattern in ("*.rules", "*.init", "ufw.conf"):
            for path in (self._root / "usr/share/ufw").glob(pattern):
                shutil.copy(path, self._root / "etc/ufw")

    def cmd(self, *arguments: str) -> str:
        """ufw; what it says."""
        argv: list[str | Path] = [
            PYTHON,
            PEERS / "usr/sbin/ufw",
            f"--rootdir={self._root}",
            f"--datadir={self._root}",
            *arguments,
        ]
        return self.lab.run("router", argv, env={"PYTHONPATH": str(_PACKAGES)}, timeout=60).stdout


class Dockerd:
    """dockerd in the router, with directories of its own: its bridge, chains and policy, but no container."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        if not (PEERS / "usr/sbin/dockerd").exists():
            pytest.skip("dockerd is not there")
        self._home = lab.tmp / "docker"
        self._home.mkdir()
        self._daemon: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Its rules anew, before all others."""
        path = f"{PEERS / 'usr/bin'}:{PEERS / 'usr/sbin'}:/usr/sbin:/usr/bin:/sbin:/bin"
        # `ip netns exec` has put another /sys in the place of the one with the control groups.
        here = f"/proc/{os.getpid()}"
        argv: list[str | Path] = ["nsenter", f"--mount={here}/ns/mnt", f"--root={here}/root", "unshare", "--mount"]
        argv += ["env", f"PATH={path}", "dockerd", "--storage-driver=vfs", f"--data-root={self._home / 'data'}"]
        argv += [
            f"--exec-root={self._home / 'exec'}",
            f"--pidfile={self._home / 'pid'}",
            f"--host=unix://{self._socket}",
        ]
        self._socket.unlink(missing_ok=True)
        self._daemon = self.lab.popen("router", argv, log=self.lab.logs / "dockerd.log")
        self.lab.wait_for(self._answers, 60, "dockerd" + self.lab.tail_of_logs(5))

    @property
    def _socket(self) -> Path:
        return self._home / "docker.sock"

    def _answers(self) -> bool:
        assert self._daemon is not None
        assert self._daemon.poll() is None, "dockerd has ended" + self.lab.tail_of_logs(10)
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(2)
                sock.connect(str(self._socket))
                sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return sock.recv(64).startswith(b"HTTP/1.0 200")
        except OSError:
            return False

    def stop(self) -> None:
        """End it. Its rules and its bridge stay, as they do."""
        assert self._daemon is not None
        self.lab.stop(self._daemon, timeout=20)

    def close(self) -> None:
        """End it, and take its bridge away."""
        self.stop()
        self.lab.run("router", ["ip", "link", "delete", "docker0"], check=False)


class Fail2ban:
    """fail2ban in the router, with one jail, which bans by nftables whom it is told to."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        if not (PEERS / "usr/bin/fail2ban-server").exists():
            pytest.skip("fail2ban is not there")
        self._home = lab.tmp / "fail2ban"
        shutil.copytree(PEERS / "etc/fail2ban", self._home / "etc")
        log = self._home / "auth.log"
        log.write_text("")
        (self._home / "etc/jail.d/defaults-debian.conf").unlink(missing_ok=True)
        (self._home / "etc/fail2ban.local").write_text("[Definition]\ndbfile = None\nallowipv6 = no\n")
        (self._home / "etc/jail.local").write_text(
            f"[sshd]\nenabled = true\nbackend = polling\nbanaction = nftables-multiport\nlogpath = {log}\nport = ssh\n"
        )
        self._env = {"PYTHONPATH": str(_PACKAGES), "PYTHONDONTWRITEBYTECODE": "1"}
        own: list[str | Path] = ["-c", self._home / "etc", "-s", self._home / "sock", "-p", self._home / "pid"]
        self._own: list[str | Path] = [*own, "--logtarget", lab.logs / "fail2ban.log"]
        argv: list[str | Path] = [
            PYTHON,
            PEERS / "usr/bin/fail2ban-server",
            *self._own,
            "-f",
            "start",
        ]
        self._server = lab.popen("router", argv, env=self._env)
        lab.wait_for(lambda: "pong" in self.client("ping", check=False), 60, "fail2ban" + lab.tail_of_logs(5))

    def client(self, *arguments: str, check: bool = True) -> str:
        """fail2ban-client; what it says."""
        argv: list[str | Path] = [PYTHON, PEERS / "usr/bin/fail2ban-client", *self._own, *arguments]
        return self.lab.run("router", argv, check=check, env=self._env).stdout

    def close(self) -> None:
        """End it: it takes its table away."""
        self.client("stop", check=False)
        self.lab.stop(self._server, timeout=20)
