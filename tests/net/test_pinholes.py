"""What comes through a pinhole, and what does not; what opens one, and what does not."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, ROUTER_OUT6, SERVER4, SERVER6, Lab
from tests.lab.servers import FtpServer
from tests.net.ftp_control import Control, fails, open_pinhole, port_command, split

SCRIPTED = 2121  # a port of the FTP module where the tests themselves are the server


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(alg={"ftp": {"ports": [21, SCRIPTED]}}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture
def control(lab: Lab, gateway: Gateway, server: FtpServer) -> Iterator[Control]:
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    yield control
    control.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")
    assert gateway.admin("pinholes") == []


def test_what_a_pinhole_says_of_itself(lab: Lab, gateway: Gateway, control: Control) -> None:
    listener, pinhole = open_pinhole(lab, gateway, control)
    host, port = split(pinhole["public"])
    assert host == ROUTER_OUT4
    assert 40000 <= port <= 49999
    assert pinhole["target"] == f"{CLIENT4}:{listener.getsockname()[1]}"
    assert pinhole["peer"] == SERVER4
    assert pinhole["protocol"] == "tcp"
    assert pinhole["reason"] == "ftp.port"
    assert 50 < pinhole["expires"] - time.time() <= 60
    assert pinhole["flow"] in [flow["id"] for flow in gateway.admin("flows")]
    assert pinhole["id"]
    listener.close()


@pytest.mark.parametrize("version", [4, 6])
def test_the_peer_gets_through_once_and_a_stranger_never(
    lab: Lab, gateway: Gateway, server: FtpServer, version: int
) -> None:
    control = Control(lab, SERVER4 if version == 4 else SERVER6)
    control.login(server.user, server.password)
    listener, pinhole = open_pinhole(lab, gateway, control, version)
    public = split(pinhole["public"])
    assert public[0] == (ROUTER_OUT4 if version == 4 else ROUTER_OUT6)

    assert fails(lab, "stranger", public)
    with lab.connect("outside", *public) as peer:
        accepted, _ = listener.accept()
        peer.sendall(b"hello")
        assert accepted.recv(5) == b"hello"
        accepted.close()
    assert fails(lab, "outside", public)
    assert fails(lab, "stranger", public)
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()
    control.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")


def test_the_end_of_the_session_closes_what_is_open(
    lab: Lab, gateway: Gateway, server: FtpServer, control: Control
) -> None:
    listener, pinhole = open_pinhole(lab, gateway, control)
    control.close()
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the pinhole to close")
    assert fails(lab, "outside", split(pinhole["public"]))
    listener.close()


def test_a_pinhole_in_userspace_admits_the_peer_once_and_a_stranger_never(
    lab: Lab, gateway: Gateway, server: FtpServer
) -> None:
    control = Control(lab, ROUTER_IN4, 1080)
    control.send(b"\5\1\0" + b"\5\1\0\1" + socket.inet_aton(SERVER4) + (21).to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        answer += control.socket.recv(12 - len(answer))
    assert answer[:4] == b"\5\0\5\0"
    control.login(server.user, server.password)
    listener, pinhole = open_pinhole(lab, gateway, control)
    public = split(pinhole["public"])
    with pytest.raises(ConnectionResetError), lab.connect("stranger", *public) as stranger:
        stranger.recv(1)
    with lab.connect("outside", *public) as peer:
        accepted, _ = listener.accept()
        peer.sendall(b"hello")
        assert accepted.recv(5) == b"hello"
        accepted.close()
    assert fails(lab, "outside", public)
    listener.close()
    control.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flows to end")


@pytest.mark.parametrize(
    "line",
    [
        "PORT 192,168,56,11,200,10",  # another inside host
        "PORT 203,0,113,66,200,10",  # a third host outside
        "PORT 203,0,113,10,200,10",  # the server
        "PORT 192,168,56,2,200,10",  # the router
        "PORT 192,168,56,10,0,22",  # a low port
        "PORT 192,168,56,256,200,10",
        "PORT 192,168,56,10,200,256",
        "PORT 192,168,56,10,200",
        "PORT 192.168.56.10,200,10",
        "PORT +192,168,56,10,200,10",
        "EPRT |1|192.168.56.11|51210|",
        "EPRT |1|192.168.56.10|22|",
        "EPRT |2|fd00:56::10|51210|",
        "EPRT |1|192.168.56.10|51210",
        "EPRT |3|x|51210|",
    ],
)
def test_a_bad_port_opens_nothing_and_passes_as_it_came(lab: Lab, gateway: Gateway, line: str) -> None:
    listener = lab.listen("outside", SERVER4, SCRIPTED)
    control = Control(lab, SERVER4, SCRIPTED)
    server, _ = listener.accept()
    server.settimeout(10)
    server.sendall(b"220 ready\r\n")
    assert control.reply() == "220 ready"
    sent = line.encode() + b"\r\nNOOP\r\n"
    control.send(sent)
    got = b""
    while len(got) < len(sent):
        got += server.recv(4096)
    assert got == sent
    assert gateway.admin("pinholes") == []
    # The session goes on, but its right to pinholes is gone.
    server.sendall(b"500 no\r\n200 yes\r\n")
    assert control.reply() == "500 no"
    assert control.reply() == "200 yes"
    good = port_command(CLIENT4, 51210)
    control.send(good)
    got = b""
    while len(got) < len(good):
        got += server.recv(4096)
    assert got == good
    assert gateway.admin("pinholes") == []
    for sock in (control.socket, server, listener):
        sock.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")


def test_a_bad_port_does_not_end_a_real_session(lab: Lab, gateway: Gateway, control: Control) -> None:
    assert control.command("PORT 192,168,56,11,200,10").startswith("500")
    assert control.command("NOOP").startswith("200")
    assert gateway.admin("pinholes") == []


def test_a_port_cut_off_by_the_end_opens_nothing(lab: Lab, gateway: Gateway) -> None:
    listener = lab.listen("outside", SERVER4, SCRIPTED)
    control = Control(lab, SERVER4, SCRIPTED)
    server, _ = listener.accept()
    server.settimeout(10)
    server.sendall(b"220 ready\r\n")
    assert control.reply() == "220 ready"
    cut = port_command(CLIENT4, 51210)[:-2]
    control.send(cut)
    control.socket.shutdown(socket.SHUT_WR)
    got = b""
    while data := server.recv(4096):
        got += data
    assert got == cut
    assert gateway.admin("pinholes") == []
    server.sendall(b"221 bye\r\n")  # the other direction is open still
    assert control.reply() == "221 bye"
    for sock in (control.socket, server, listener):
        sock.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")


def listing(listener: socket.socket) -> bytes:
    """What the server sends over the data connection that it opens to us."""
    data, got = listener.accept()[0], b""
    with data:
        while chunk := data.recv(4096):
            got += chunk
    return got


def test_a_port_that_comes_byte_by_byte_works(lab: Lab, server: FtpServer, control: Control) -> None:
    server.put("pub/here", b"x")
    listener = lab.listen("inside", CLIENT4)
    control.dribble(port_command(CLIENT4, listener.getsockname()[1]))
    assert control.reply().startswith("200")
    control.send(b"LIST pub\r\n")
    assert b"here" in listing(listener)
    assert control.reply().startswith("150")
    assert control.reply().startswith("226")
    listener.close()


def test_a_port_among_other_commands_in_one_segment_works(lab: Lab, server: FtpServer, control: Control) -> None:
    server.put("pub/here", b"x")
    listener = lab.listen("inside", CLIENT4)
    command = port_command(CLIENT4, listener.getsockname()[1])
    control.send(b"NOOP\r\nCWD pub\r\n" + command + b"LIST\r\nPWD\r\n")
    assert b"here" in listing(listener)
    replies = [control.reply()[:3] for _ in range(6)]
    assert replies == ["200", "250", "200", "150", "226", "257"]
    listener.close()
