"""Other people's firewalls in the lab's router: firewalld and ufw as Debian has them (unpacked, not installed), with a
message bus and directories of their own; fail2ban's and Docker's rules as those programs write them."""

from __future__ import annotations

import contextlib
import shutil
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
            shutil.copytree(PEERS / name, self._root / name)
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


# What dockerd writes when it starts, with iptables (its default; versions 20 to 27), for one bridge.
DOCKER_FILTER = """*filter
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-P FORWARD DROP
-I FORWARD -o docker0 -j DOCKER
-I FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD -i docker0 ! -o docker0 -j ACCEPT
-I FORWARD -i docker0 -o docker0 -j ACCEPT
-I FORWARD -j DOCKER-ISOLATION-STAGE-1
-I FORWARD -j DOCKER-USER
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-I PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-I OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-I POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
"""


def start_docker(lab: Lab) -> None:
    """As dockerd does when it starts or restarts: its rules anew, before all others."""
    for table in ("filter", "nat"):
        for chain, rule in _jumps(lab, table):
            lab.run("router", ["iptables", "-t", table, "-D", chain, *rule])
    text = DOCKER_FILTER.replace("-P FORWARD DROP\n", "")
    lab.run("router", ["iptables-restore", "--noflush"], stdin=text)
    lab.run("router", ["iptables", "-P", "FORWARD", "DROP"])


def _jumps(lab: Lab, table: str) -> list[tuple[str, list[str]]]:
    """dockerd's rules in built-in chains."""
    saved = lab.run("router", ["iptables-save", "-t", table]).stdout
    rules = [line.split()[1:] for line in saved.splitlines() if line.startswith("-A ")]
    own = [rule for rule in rules if not rule[0].startswith("DOCKER")]
    return [(rule[0], rule[1:]) for rule in own if any("docker" in word.lower() or "172.17" in word for word in rule)]


# What fail2ban's action nftables-multiport does at the first ban (fail2ban 1.0).
FAIL2BAN = """table inet f2b-table {
	set addr-set-sshd {
		type ipv4_addr
	}
	chain f2b-chain {
		type filter hook input priority filter - 1; policy accept;
		tcp dport 22 ip saddr @addr-set-sshd reject with icmp type port-unreachable
	}
}
"""
