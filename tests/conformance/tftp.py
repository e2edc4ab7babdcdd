"""`python -m tests.conformance.tftp`: TFTP with the gateway, the kernel's helper and neither.

Needs root. Puts the table into docs/protocols/tftp.md. With `--check` it writes nothing. Exit code 1 where the gateway
failed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.table import Trial, gateway, kernel_helper, main, plain_nat
from tests.lab import servers
from tests.lab.lab import CLIENT2_4, CLIENT4, SERVER4, SERVER6, STRANGER4, Lab, Role
from tests.lab.peers import unpacked

PAGE = Path(__file__).parents[2] / "docs" / "protocols" / "tftp.md"
TFTP = 69
SIZE = 300_000
ASKS = b"\0\1boot.bin\0octet\0"
WAIT = 1.5  # seconds until something that should have come has not


@contextlib.contextmanager
def server(lab: Lab, host: str = SERVER4) -> Iterator[Path]:
    """dnsmasq outside; its folder has `boot.bin`."""
    root = lab.tmp / "tftp"
    root.mkdir(exist_ok=True)
    root.chmod(0o755)
    (root / "boot.bin").write_bytes(os.urandom(SIZE))
    (root / "boot.bin").chmod(0o644)
    process = servers.tftp(lab, root, host)
    try:
        yield root
    finally:
        lab.stop(process)


def curl(host: str, *options: str) -> Trial:
    def attempt(lab: Lab) -> None:
        with server(lab, host.strip("[]")) as root:
            into = lab.tmp / "got.bin"
            into.unlink(missing_ok=True)
            url = f"tftp://{host}/boot.bin"
            argv: list[str | Path] = [
                "curl",
                "-sS",
                "--globoff",
                "--max-time",
                "20",
                "--connect-timeout",
                "4",
                "-o",
                into,
                *options,
                url,
            ]
            lab.run("inside", argv, timeout=25)
            assert digest(into) == digest(root / "boot.bin")

    return Trial(f"curl fetches{' over IPv6' if ':' in host else ''} {' '.join(options)}".rstrip(), attempt)


def hpa(lab: Lab) -> None:
    with server(lab) as root:
        into = lab.tmp / "hpa.bin"
        into.unlink(missing_ok=True)
        program = unpacked("tftp-hpa", "usr/bin/tftp")
        lab.run("inside", [program, "-m", "binary", SERVER4, "-c", "get", "boot.bin", into], timeout=8)
        assert digest(into) == digest(root / "boot.bin")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def sock(lab: Lab, role: Role, host: str, port: int = 0) -> Iterator[socket.socket]:
    with lab.enter(role):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.bind((host, port))
        made.settimeout(WAIT)
        yield made


def two_clients(lab: Lab) -> None:
    """Boot ROMs ask from one port: both get their own file."""
    with (
        sock(lab, "inside", CLIENT4, 2070) as first,
        sock(lab, "client2", CLIENT2_4, 2070) as other,
        sock(lab, "outside", SERVER4, TFTP) as listener,
        sock(lab, "outside", SERVER4) as answerer,
    ):
        for number, client in enumerate((first, other)):
            client.sendto(ASKS, (SERVER4, TFTP))
            public = listener.recvfrom(600)[1]
            answerer.sendto(bytes([number]), public)
            assert client.recv(600) == bytes([number])


def ask(lab: Lab, client_port: int, peer: Role, host: str) -> socket.socket | None:
    """Ask from a client's port, answer from `peer`; whether the answer came in."""
    with (
        sock(lab, "inside", CLIENT4, client_port) as client,
        sock(lab, "outside", SERVER4, TFTP) as listener,
        sock(lab, peer, host) as answerer,
    ):
        client.sendto(ASKS, (SERVER4, TFTP))
        public = listener.recvfrom(600)[1]
        answerer.sendto(b"\0\3\0\1data", public)
        try:
            client.recv(600)
        except TimeoutError:
            return None
        return client


def stranger(lab: Lab) -> None:
    """Another host's answer does not come in, and the server's does."""
    assert ask(lab, 2081, "outside", SERVER4) is not None
    assert ask(lab, 2082, "stranger", STRANGER4) is None


def low_port(lab: Lab) -> None:
    """Nobody reaches a client's service at a low port, as NTP's."""
    assert ask(lab, 123, "outside", SERVER4) is None


def no_request(lab: Lab) -> None:
    with (
        sock(lab, "inside", CLIENT4, 2083) as client,
        sock(lab, "outside", SERVER4, TFTP) as listener,
        sock(lab, "outside", SERVER4) as answerer,
    ):
        client.sendto(b"GET / HTTP/1.1\r\n\r\n" + ASKS, (SERVER4, TFTP))
        answerer.sendto(b"x", listener.recvfrom(600)[1])
        try:
            client.recv(600)
        except TimeoutError:
            return
        raise AssertionError("something came in")


def random_ports(lab: Lab) -> None:
    rule = ["POSTROUTING", "-o", "eth0", "-p", "udp", "-j", "MASQUERADE", "--random-fully"]
    lab.run("router", ["iptables", "-t", "nat", "-I", *rule])
    try:
        assert ask(lab, 2084, "outside", SERVER4) is not None
    finally:
        lab.run("router", ["iptables", "-t", "nat", "-D", *rule])


TRIALS = [
    curl(SERVER4),
    curl(SERVER4, "--tftp-blksize", "1428"),
    curl(f"[{SERVER6}]"),
    Trial("tftp-hpa's client fetches", hpa),
    Trial("two clients with one source port, at once", two_clients),
    Trial("the server's port comes in, another host does not", stranger),
    Trial("behind MASQUERADE --random-fully", random_ports),
    Trial("a request from port 123 lets nobody in there", low_port),
    Trial("what is no request lets nobody in", no_request),
]
WAYS = {
    "plain NAT": plain_nat,
    "nf_conntrack_tftp": kernel_helper("tftp", "udp", TFTP),
    "algate": gateway(process={"workers": 1}),
}

if __name__ == "__main__":
    sys.exit(main("tests.conformance.tftp", PAGE, TRIALS, WAYS, sys.argv[1:]))
