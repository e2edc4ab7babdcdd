"""What is said behind a data connection does not overtake it: a server that has connected says 150 in the same instant,
and clients (curl: "Weird server reply") count on the connection being there when they read that."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import (
    CLIENT4,
    CLIENT6,
    ROUTER_IN4,
    ROUTER_IN6,
    ROUTER_OUT4,
    ROUTER_OUT6,
    SERVER4,
    SERVER6,
    Lab,
    Role,
)
from tests.net.ftp_control import Control, port_command
from tests.net.ftp_script import PORT, Script
from tests.net.socks_wire import ask5

PUBLISHED = 2021
SERVERS = {4: SERVER4, 6: SERVER6}
CLIENTS = {4: CLIENT4, 6: CLIENT6}
PROXIES = {4: ROUTER_IN4, 6: ROUTER_IN6}
OUTSIDES = {4: ROUTER_OUT4, 6: ROUTER_OUT6}


@pytest.fixture(scope="module")
def gateway(strict_lab: Lab) -> Iterator[Gateway]:
    publish = [
        {"outside": f"{ROUTER_OUT4}:{PUBLISHED}", "inside": f"{CLIENT4}:{PORT}"},
        {"outside": f"[{ROUTER_OUT6}]:{PUBLISHED}", "inside": f"[{CLIENT6}]:{PORT}"},
    ]
    config = strict_lab.write_config(
        publish=publish, alg={"ftp": {"ports": [21, PORT]}}, process={"workers": 1}, pinhole={"rate": 1000}
    )
    gateway = strict_lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0, strict_lab.tail_of_logs()
    assert strict_lab.leftovers() == []


@contextlib.contextmanager
def begun(lab: Lab, listening: tuple[Role, str], connecting: tuple[Role, str, int], ask: str = "") -> Iterator[Script]:
    """A session whose server listens at `listening`, and whose client connects to a published server, or by SOCKS to
    `ask`."""
    with lab.listen(*listening, PORT) as listener:
        client = Control(lab, connecting[1], connecting[2], connecting[0])
        if ask:
            assert ask5(client.socket, ask, PORT)[0] == 0
        server, _ = listener.accept()
    server.settimeout(10)
    session = Script(client, server)
    with server, client.socket:
        server.sendall(b"220 ready\r\n")
        assert client.reply() == "220 ready"
        assert session.command(b"USER ann\r\n", b"230 in\r\n") == "230 in"
        yield session


def by_socks(lab: Lab, version: int) -> contextlib.AbstractContextManager[Script]:
    server = SERVERS[version]
    return begun(lab, ("outside", server), ("inside", PROXIES[version], 1080), server)


def published(lab: Lab, version: int) -> contextlib.AbstractContextManager[Script]:
    return begun(lab, ("inside", CLIENTS[version]), ("outside", OUTSIDES[version], PUBLISHED))


def advertises(session: Script, host: str, port: int) -> tuple[str, int]:
    """The client says where it listens; where the server is told to connect."""
    if ":" in host:
        session.client.send(f"EPRT |2|{host}|{port}|\r\n".encode())
        fields = session.line().decode().split("|")
        public = fields[2], int(fields[3])
    else:
        session.client.send(port_command(host, port))
        numbers = session.line().removeprefix(b"PORT ").strip().split(b",")
        public = b".".join(numbers[:4]).decode(), int(numbers[4]) * 256 + int(numbers[5])
    session.server.sendall(b"200 ok\r\n")
    assert session.client.reply() == "200 ok"
    return public


@contextlib.contextmanager
def not_looking(gateway: Gateway) -> Iterator[None]:
    """The worker has no time meanwhile: all that comes is there at once when it has some again."""
    pids = [row["pid"] for row in gateway.admin("status") if row["process"].startswith("worker")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def has_come(listener: socket.socket) -> bool:
    """Whether a connection waits there now."""
    return bool(select.select([listener], [], [], 0)[0])


def finished(lab: Lab, gateway: Gateway) -> None:
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flows to end")
    assert gateway.admin("pinholes") == []


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("way", ["socks", "published"])
def test_the_connection_is_there_before_150(strict_lab: Lab, gateway: Gateway, way: str, version: int) -> None:
    """The server connects, says 150 and 226, and nothing more, while the worker is not looking; many times."""
    lab, inside, outside = strict_lab, CLIENTS[version], SERVERS[version]
    ends: tuple[Role, Role] = ("inside", "outside") if way == "socks" else ("outside", "inside")
    of_client, of_server = ends
    host = inside if way == "socks" else outside
    with (by_socks if way == "socks" else published)(lab, version) as session, lab.listen(of_client, host) as data:
        early = []
        for number in range(20):
            public = advertises(session, host, data.getsockname()[1])
            session.client.send(b"RETR a\r\n")
            session.expect(b"RETR a\r\n")
            with not_looking(gateway), lab.connect(of_server, *public) as sock:
                sock.sendall(b"all of it")
                session.server.sendall(b"150 here\r\n226 done\r\n")
            assert session.client.reply() == "150 here"
            if not has_come(data):
                early.append(number)
            assert session.client.reply() == "226 done"
            with data.accept()[0] as sock:
                assert sock.recv(100) == b"all of it"
                assert sock.recv(1) == b""
        assert early == []
        public = advertises(session, host, data.getsockname()[1])
        with not_looking(gateway), lab.connect(of_server, *public):
            session.server.sendall(b"150 here\r\n421 and the end\r\n")
            session.server.shutdown(socket.SHUT_WR)
        assert session.client.reply() == "150 here"
        assert has_come(data)
        assert session.client.reply() == "421 and the end"
        with pytest.raises(ConnectionError):
            session.client.reply()
        data.accept()[0].close()
    finished(lab, gateway)


@pytest.mark.parametrize("version", [4, 6])
def test_the_connection_is_there_before_150_while_others_are_busy(
    strict_lab: Lab, gateway: Gateway, version: int
) -> None:
    lab, over = strict_lab, threading.Event()

    def keep_busy(other: Script) -> None:
        while not over.is_set():
            other.client.send(b"NOOP\r\n" * 50)
            other.expect(b"NOOP\r\n" * 50)
            other.server.sendall(b"200 ok\r\n" * 50)
            for _ in range(50):
                other.client.reply()

    with contextlib.ExitStack() as stack:
        session, *others = [stack.enter_context(by_socks(lab, version)) for _ in range(4)]
        data = stack.enter_context(lab.listen("inside", CLIENTS[version]))
        threads = [threading.Thread(target=keep_busy, args=(other,)) for other in others]
        for thread in threads:
            thread.start()
        try:
            early = []
            for number in range(100):
                public = advertises(session, CLIENTS[version], data.getsockname()[1])
                with lab.connect("outside", *public):
                    session.server.sendall(b"150 here\r\n")
                    assert session.client.reply() == "150 here"
                    if not has_come(data):
                        early.append(number)
                    session.server.sendall(b"226 done\r\n")
                    assert session.client.reply() == "226 done"
                    data.accept()[0].close()
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert early == []
    finished(lab, gateway)


@pytest.mark.parametrize("version", [4, 6])
def test_a_published_server_has_the_connection_before_the_command(
    strict_lab: Lab, gateway: Gateway, version: int
) -> None:
    """Passive: it is the client that connects, and says RETR behind it."""
    lab = strict_lab
    with published(lab, version) as session, lab.listen("inside", CLIENTS[version]) as data:
        early = []
        for number in range(20):
            session.client.send(b"EPSV\r\n")
            session.expect(b"EPSV\r\n")
            session.server.sendall(b"229 Passive (|||%d|)\r\n" % data.getsockname()[1])
            port = int(session.client.reply().split("|")[3])
            with not_looking(gateway), lab.connect("outside", OUTSIDES[version], port):
                session.client.send(b"RETR a\r\n")
            session.expect(b"RETR a\r\n")
            if not has_come(data):
                early.append(number)
            session.server.sendall(b"150 here\r\n226 done\r\n")
            assert session.client.reply() == "150 here"
            assert session.client.reply() == "226 done"
            data.accept()[0].close()
        assert early == []
    finished(lab, gateway)


@pytest.mark.parametrize("version", [4, 6])
def test_a_client_that_does_not_listen_is_told_at_once(strict_lab: Lab, gateway: Gateway, version: int) -> None:
    lab = strict_lab
    with by_socks(lab, version) as session:
        with lab.listen("inside", CLIENTS[version]) as data:
            port = data.getsockname()[1]
        for _ in range(5):
            public = advertises(session, CLIENTS[version], port)
            with not_looking(gateway), lab.connect("outside", *public) as sock:
                session.server.sendall(b"150 here\r\n426 reset\r\n")
            with contextlib.suppress(OSError):
                sock.close()
            assert session.client.reply() == "150 here"
            assert session.client.reply() == "426 reset"
    finished(lab, gateway)
