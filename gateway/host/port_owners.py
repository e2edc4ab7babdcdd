"""The doctor's check of the ports at which clients ask for public ports: whether another program has one of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gateway.config.schema import PCP_PORT, SSDP_PORT, Config
from gateway.host.finding import Finding

_PROC = Path("/proc")
_TCP_LISTEN = "0A"  # <net/tcp_states.h>, as in /proc/net/tcp
_WHAT: dict[tuple[str, int], str] = {("udp", PCP_PORT): "PCP, NAT-PMP", ("udp", SSDP_PORT): "SSDP"}
_OURS = tuple(f"gateway.{room}" for room in ("supervisor", "process"))  # no import: words of a command line


def examine_ports(config: Config, proc: Path = _PROC) -> Iterator[Finding]:
    """Return a finding for each port at which clients ask. `proc` is /proc. Only root can see the owner of each socket;
    a port without a visible owner counts as free."""
    for transport, ports in config.portmap_ports.items():
        for port in ports:
            name = f"port {port}/{transport} ({_WHAT.get((transport, port), 'UPnP')})"
            others = sorted(_others(proc, _inodes(proc, transport, port)))
            if not others:
                yield Finding(name, "ok", "no other program has it")
            elif (transport, port) == ("udp", SSDP_PORT):  # which several programs may have
                said = f"{', '.join(others)} has it, too: if that is a gateway of UPnP, clients find two"
                yield Finding(name, "warning", said, "stop and disable miniupnpd, if it runs; a media server may stay")
            else:
                hint = "stop and disable it" if transport == "udp" else "stop it, or set portmap.http_port"
                yield Finding(name, "failed", f"{', '.join(others)} has it, so clients cannot ask here", hint)


def _inodes(proc: Path, transport: str, port: int) -> set[str]:
    """The sockets that have this port, of this network namespace: at no loopback address."""
    found = set()
    for name in (transport, f"{transport}6"):
        with contextlib.suppress(OSError):
            for line in (proc / "self/net" / name).read_text().splitlines()[1:]:
                words = line.split()
                address, _, number = words[1].partition(":")
                is_loopback = len(address) == 8 and address.endswith("7F")  # the last byte first
                is_open = transport == "udp" or words[3] == _TCP_LISTEN
                if int(number, 16) == port and is_open and not is_loopback:
                    found.add(words[9])
    return found


def _others(proc: Path, inodes: set[str]) -> set[str]:
    """The programs that have one of these sockets open, as "NAME (PID)", but algate's own."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found: set[str] = set()
    if not wanted:
        return found
    for pid in filter(str.isdigit, os.listdir(proc)):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if any(os.readlink(entry) in wanted for entry in os.scandir(proc / pid / "fd")):
                words = (proc / pid / "cmdline").read_bytes().split(b"\0")
                if not any(_is_ours(os.fsdecode(word)) for word in words[:6]):
                    found.add(f"{(proc / pid / 'comm').read_text().strip()} (process {pid})")
    return found


def _is_ours(word: str) -> bool:
    return word.startswith(_OURS) or os.path.basename(word) == "algate"
