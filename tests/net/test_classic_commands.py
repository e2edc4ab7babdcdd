"""rftp, rtelnet, rfinger and rwhois through real proxies."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, SERVER6, STRANGER4, Lab, Role
from tests.lab.servers import FtpServer
from tests.net.proxies import danted, three_proxy

NAME = "files.example"
BIN = Path(sys.executable).parent
OURS = f"socks5://{ROUTER_IN4}:1080"
DANTE = f"socks5://{STRANGER4}:1080"


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    lab.dns({NAME: [SERVER4]})
    danted(lab, "stranger", STRANGER4)
    gateway = lab.start_gateway(deadline=90)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module")
def served(lab: Lab, server: FtpServer) -> bytes:
    content = os.urandom(300_000)
    server.put("pub/file", content)
    return content


@pytest.mark.parametrize("mode", [[], ["-A"]], ids=["passive", "active"])
@pytest.mark.parametrize(
    ("via", "role", "host"),
    [
        (OURS, "inside", SERVER4),
        (OURS, "inside", SERVER6),
        (OURS, "inside", "files.example"),
        (DANTE, "outside", SERVER4),
    ],
)
def test_files_come_and_go(
    lab: Lab,
    gateway: Gateway,
    server: FtpServer,
    served: bytes,
    tmp_path: Path,
    mode: list[str],
    via: str,
    role: Role,
    host: str,
) -> None:
    transfer(lab, server, served, tmp_path, mode, via, role, host)


@pytest.mark.parametrize("mode", [[], ["-A"]], ids=["passive", "active"])
def test_files_through_3proxy(
    lab: Lab, gateway: Gateway, server: FtpServer, served: bytes, tmp_path: Path, mode: list[str]
) -> None:
    three_proxy(lab, "stranger", STRANGER4, 1085 if mode else 1095)
    via = f"socks5://{STRANGER4}:{1085 if mode else 1095}"
    transfer(lab, server, served, tmp_path, mode, via, "outside", SERVER4)


def transfer(
    lab: Lab, server: FtpServer, served: bytes, tmp_path: Path, mode: list[str], via: str, role: Role, host: str
) -> None:
    """Get, list and put, by the commands of standard input."""
    (tmp_path / "up").write_bytes(served[::-1])
    name = f"up-{os.urandom(4).hex()}"
    commands = f"cd pub\nget file {tmp_path}/got\nls\ncd ../upload\nput {tmp_path}/up {name}\nquit\n"
    target = f"[{host}]" if ":" in host else host
    argv = ["algate", "ftp"] if host == SERVER4 else ["rftp"]
    done = lab.run(role, [BIN / argv[0], *argv[1:], "--via", via, *mode, target], stdin=commands)
    assert (tmp_path / "got").read_bytes() == served, done.stdout + done.stderr
    assert (server.root / "upload" / name).read_bytes() == served[::-1]
    assert "file" in done.stdout


def test_a_command_that_fails_fails_the_script(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    done = lab.run("inside", [BIN / "rftp", "--via", OURS, SERVER4], stdin="get missing\nbogus\nquit\n", check=False)
    assert done.returncode == 1
    assert "ftp: 550" in done.stderr
    assert not Path("missing.part").exists()
    assert "ftp: bogus: no such command" in done.stderr


def answer_once(lab: Lab, port: int, answers: dict[bytes, bytes]) -> threading.Thread:
    """A server that answers one line and closes."""
    listener = lab.listen("outside", SERVER4, port)

    def serve() -> None:
        with listener:
            sock, _ = listener.accept()
        with sock:
            sock.settimeout(10)
            line = b""
            while not line.endswith(b"\n") and (part := sock.recv(100)):
                line += part
            sock.sendall(answers[line])
            sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_finger(lab: Lab, gateway: Gateway) -> None:
    thread = answer_once(lab, 79, {b"ann\r\n": b"Login: ann\r\n"})
    assert lab.run("inside", [BIN / "rfinger", "--via", OURS, f"ann@{SERVER4}"]).stdout == "Login: ann\n"
    thread.join()


def test_whois_follows_one_referral(lab: Lab, gateway: Gateway) -> None:
    first = answer_once(lab, 43, {b"example.org\r\n": f"refer: {SERVER4}:4343\r\n".encode()})
    done = lab.run("inside", [BIN / "rwhois", "--via", OURS, "--server", SERVER4, "example.org"])
    assert done.stdout == f"refer: {SERVER4}:4343\n", "the server that was named is the only one that is asked"
    first.join()


def test_telnet(lab: Lab, gateway: Gateway) -> None:
    thread = answer_once(lab, 2323, {b"hello\r\n": b"world\r\n"})
    done = lab.run("inside", [BIN / "rtelnet", "--via", OURS, SERVER4, "2323"], stdin="hello\n")
    assert done.stdout == "world\n"
    thread.join()
