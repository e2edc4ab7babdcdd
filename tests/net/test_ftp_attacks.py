"""Attacks on and by FTP, with real sockets. Those on single lines are in test_pinholes.py and in tests/wire/ftp."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, STRANGER4, Lab
from tests.net.ftp_control import fails, port_command, split
from tests.net.ftp_script import PORT, Script, script
from tests.net.raw_tcp import RawTcp

GOOD = port_command(CLIENT4, 51210)


@pytest.fixture(scope="module")
def gateway(strict_lab: Lab) -> Iterator[Gateway]:
    gateway = strict_lab.start_gateway(strict_lab.write_config(alg={"ftp": {"ports": [21, PORT]}}))
    yield gateway
    assert gateway.stop() == 0, strict_lab.tail_of_logs()
    assert strict_lab.leftovers() == []


def relayed_without_a_pinhole(session: Script, gateway: Gateway, data: bytes) -> None:
    """What the client sends gets there as it is, and nothing is open."""
    session.client.send(data)
    session.expect(data)
    assert gateway.admin("pinholes") == []


@pytest.mark.parametrize(
    "target",
    [
        "192.168.56.255",  # broadcast of the inside network
        "255.255.255.255",
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        STRANGER4,  # a third host
        SERVER4,
        ROUTER_OUT4,
        ROUTER_IN4,
    ],
)
@pytest.mark.parametrize("verb", ["PORT", "EPRT"])
def test_bounce(strict_lab: Lab, gateway: Gateway, verb: str, target: str) -> None:
    line = port_command(target, 51210) if verb == "PORT" else f"EPRT |1|{target}|51210|\r\n".encode()
    with script(strict_lab, gateway) as session:
        relayed_without_a_pinhole(session, gateway, line)
        session.server.sendall(b"200 ok\r\n")
        assert session.client.reply() == "200 ok"
        relayed_without_a_pinhole(session, gateway, GOOD)  # the right to pinholes is gone


@pytest.mark.parametrize(
    "after",
    [
        GOOD,
        b"\x16\x03\x01\x00\x03abc" + GOOD,
        b"\x17\x03\x03\x00\x1b" + GOOD,
        b"\x16\x03\x01\x00\x03abc\x17\x03\x03\x00\x1b" + GOOD,  # within a record
        b"\x16\x03\x01\x00\x03abc\x17\x03\x03\x40\x00" + GOOD,  # within a long record
    ],
    ids=["clear", "after-handshake", "no-handshake", "in-record", "in-long-record"],
)
def test_port_after_auth(strict_lab: Lab, gateway: Gateway, after: bytes) -> None:
    with script(strict_lab, gateway) as session:
        assert session.command(b"AUTH TLS\r\n", b"234 go\r\n") == "234 go"
        relayed_without_a_pinhole(session, gateway, after)


@pytest.mark.parametrize("greet", [True, False], ids=["server-speaks-first", "server-waits"])
def test_a_web_page_posts_to_an_ftp_port(strict_lab: Lab, gateway: Gateway, greet: bool) -> None:
    """NAT slipstreaming: the body of an HTTP POST makes PORT begin a segment; the server is the attacker's."""
    listener = strict_lab.listen("outside", SERVER4, PORT)
    with strict_lab.connect("inside", SERVER4, PORT) as browser, listener.accept()[0] as server:
        server.settimeout(10)
        if greet:
            server.sendall(b"220 ready\r\n")
            assert browser.recv(100) == b"220 ready\r\n"
        head = b"POST / HTTP/1.1\r\nHost: ftp.example.com:2121\r\nContent-Length: 9999\r\n\r\n"
        for data in (head + b"x" * (1460 - len(head)), GOOD, b"y\r\n" + GOOD + b"LIST\r\n"):
            browser.sendall(data)
            got = b""
            while len(got) < len(data):
                got += server.recv(len(data) - len(got))
            assert got == data
            server.sendall(b"220 ready\r\n200 PORT command successful\r\n")
            assert browser.recv(100)
            assert gateway.admin("pinholes") == []
    listener.close()
    gateway.wait_for_log("alg.revoke.*ftp.not-ftp")
    strict_lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")


@pytest.mark.parametrize("host", [STRANGER4, ROUTER_OUT4, "192.168.56.11"])
def test_227_names_another_host(strict_lab: Lab, gateway: Gateway, host: str) -> None:
    with script(strict_lab, gateway) as session:
        reply = b"227 Passive (" + port_command(host, 51210)[5:-2] + b").\r\n"
        assert session.command(b"PASV\r\n", reply) == reply.decode().strip()
        # At most that port of the server itself: clients connect there whatever the reply names.
        assert {row["target"] for row in gateway.admin("pinholes")} <= {f"{SERVER4}:51210"}
        target = strict_lab.listen("stranger", STRANGER4, 51210)
        assert fails(strict_lab, "inside", (STRANGER4, 51210))
        target.close()


def test_229_names_another_host(strict_lab: Lab, gateway: Gateway) -> None:
    """RFC 2428 has the address empty. Whatever one says that is not, the server's own is meant."""
    with script(strict_lab, gateway) as session:
        reply = f"229 Passive (|1|{STRANGER4}|51210|)\r\n".encode()
        assert session.command(b"EPSV\r\n", reply) == reply.decode().strip()
        (pinhole,) = gateway.admin("pinholes")
        assert split(pinhole["target"]) == (SERVER4, 51210)


def test_replies_within_a_reply(strict_lab: Lab, gateway: Gateway) -> None:
    """A file's name or a welcome text must not answer PASV: within a multi-line reply everything is text."""
    with script(strict_lab, gateway) as session:
        text = b"211-Status\r\n227 Passive (203,0,113,10,200,10).\r\n 229 (|||51210|)\r\n200 ok\r\n211-\r\n"
        session.client.send(b"STAT\r\nPASV\r\n")
        session.expect(b"STAT\r\nPASV\r\n")
        session.server.sendall(text)
        assert session.client.line() == "211-Status"
        assert gateway.admin("pinholes") == []
        session.server.sendall(b"211 End\r\n227 Passive (203,0,113,10,200,11).\r\n")
        while not session.client.line().startswith("227 Passive (203,0,113,10,200,11)"):
            pass
        (pinhole,) = gateway.admin("pinholes")
        assert split(pinhole["target"]) == (SERVER4, 200 * 256 + 11)


def test_overlapping_retransmissions(strict_lab: Lab, gateway: Gateway) -> None:
    """Two versions of the same bytes: what a packet inspector reads may not be what the server reads.

    Here the gateway ends the client's TCP: the server gets the one version that the module read, from another TCP. Each
    PORT that it sees names an open pinhole, or is relayed as it is and nothing is open.
    """
    good, evil = GOOD, port_command(STRANGER4, 51210).ljust(len(GOOD) + 1)[: len(GOOD) - 2] + b"\r\n"
    assert len(good) == len(evil)
    listener = strict_lab.listen("outside", SERVER4, PORT)
    for number, (first, second) in enumerate(((good, evil), (evil, good))):
        raw = RawTcp(strict_lab, "inside", CLIENT4, SERVER4, PORT, 47000 + number)
        server = listener.accept()[0]
        server.settimeout(10)
        server.sendall(b"220 ready\r\n")
        assert raw.read(11) == b"220 ready\r\n"
        user = b"USER ann\r\n"
        raw.send(user, 0)
        at = len(user)
        raw.send(first[8:], at + 8)  # the end of the line first, in two versions, and then in one with both
        raw.send(second[8:], at + 8)
        raw.send(first[:8], at)
        raw.send(second, at)
        got = b""
        while got.count(b"\n") < 2:
            got += server.recv(100)
        line = got.removeprefix(user)
        rows = gateway.admin("pinholes")
        if line == evil:
            assert rows == []
        else:
            assert line not in (good, evil)
            (pinhole,) = rows
            assert port_command(*split(pinhole["public"])) == line
            assert split(pinhole["target"]) == (CLIENT4, 51210)
        raw.reset(at + len(good))
        server.close()
        strict_lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")
    listener.close()


@pytest.mark.parametrize("window", [500, 100_000], ids=["in-step", "blindly"])
def test_a_flood_of_port_commands(
    strict_lab: Lab, gateway: Gateway, window: int, request: pytest.FixtureRequest
) -> None:
    """One client asks for pinholes as fast as it can, or with at most `window` commands on the way.

    It holds few, as its session is soon relayed unread, and others are served meanwhile.
    """
    server = strict_lab.vsftpd()
    request.addfinalizer(server.stop)
    server.put("pub/here", b"x")
    block = b"".join(port_command(CLIENT4, 20000 + i) for i in range(100))
    with script(strict_lab, gateway) as session:
        stop = threading.Event()
        passed = threading.Semaphore(window // 100)
        blocks = 0

        def flood() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    if passed.acquire(timeout=0.1):
                        session.client.send(block)

        def drain() -> None:
            nonlocal blocks
            lines = 0
            with contextlib.suppress(OSError):
                while data := session.server.recv(65536):
                    lines += data.count(b"\n")
                    while lines >= 100 * (blocks + 1):
                        blocks += 1
                        passed.release()

        threads = [threading.Thread(target=work) for work in (flood, drain)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            strict_lab.wait_for(lambda: blocks > 100, 30, "the flood to begin")
            most = 0
            for active in (True, False, True):
                start = time.monotonic()
                mode = ["--ftp-port", "-"] if active else []
                done = strict_lab.run("client2", ["curl", "-sS", *mode, server.url("pub/here")])
                assert done.stdout == "x"
                assert time.monotonic() - start < 10
                most = max(most, sum(row["client"] == CLIENT4 for row in gateway.admin("pinholes")))
            rate = 100 * blocks / (time.monotonic() - began)
        finally:
            stop.set()
            for sock in (session.client.socket, session.server):
                sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)
        assert most <= 256  # so many commands may be without an answer; beyond that the session is relayed unread
        gateway.wait_for_log("ftp.flood")
        assert rate > 1_000  # about 10,000 where nothing else runs


def test_a_race_for_a_pinhole(strict_lab: Lab, gateway: Gateway) -> None:
    """Many connections at once: of a stranger none gets through, of the server at most the first."""
    with script(strict_lab, gateway) as session:
        for _ in range(5):
            listener = strict_lab.listen("inside", CLIENT4)
            session.client.send(port_command(CLIENT4, listener.getsockname()[1]))
            numbers = session.line().removeprefix(b"PORT ").split(b",")
            session.server.sendall(b"200 ok\r\n")
            assert session.client.reply() == "200 ok"
            public = ROUTER_OUT4, int(numbers[4]) * 256 + int(numbers[5])
            with ThreadPoolExecutor(16) as pool:
                stranger = [pool.submit(fails, strict_lab, "stranger", public) for _ in range(8)]
                peer = [pool.submit(fails, strict_lab, "outside", public) for _ in range(8)]
                assert all(job.result() for job in stranger)
                assert sum(not job.result() for job in peer) == 1
            assert listener.accept()[1][0] == SERVER4
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                listener.accept()
            listener.close()
