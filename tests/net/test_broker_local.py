"""Pinholes of SOCKS clients on a router whose own INPUT policy is DROP: the broker lets their peers in."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, ROUTER_OUT4, SERVER4, SERVER6, STRANGER4, Lab
from tests.lab.servers import FtpServer
from tests.net.ftp_control import Control, open_pinhole, split
from tests.net.udp_client import PORT, associate, udp, works

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(input_drop=True, logs=tmp_path_factory.mktemp("drop-lab")) as lab:
        yield lab
        assert lab.leftovers() == []


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway()
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


def through_socks(lab: Lab, server: FtpServer) -> Control:
    control = Control(lab, ROUTER_IN4, 1080)
    control.send(b"\5\1\0" + b"\5\1\0\1" + socket.inet_aton(SERVER4) + (21).to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        answer += control.socket.recv(12 - len(answer))
    assert answer[:4] == b"\5\0\5\0"
    control.login(server.user, server.password)
    return control


def reaches(lab: Lab, role: str, public: tuple[str, int]) -> bool:
    try:
        lab.connect(role, *public, timeout=0.5).close()  # type: ignore[arg-type]
    except OSError:
        return False
    return True


@pytest.mark.parametrize("address", [SERVER4, f"[{SERVER6}]"], ids=["ipv4", "ipv6"])
def test_active_ftp_through_socks(lab: Lab, gateway: Gateway, server: FtpServer, address: str) -> None:
    server.put("pub/file", b"through a closed INPUT chain")
    url = f"ftp://{address}/pub/file"
    curl = ["curl", "-sS", "--max-time", "10", "--socks5", f"{ROUTER_IN4}:1080", "--ftp-port", "-", url]
    if ":" in address:
        curl[curl.index("--socks5") + 1] = "[fd00:56::2]:1080"
    done = lab.run("inside", [*curl[:-1], "--user", f"{server.user}:{server.password}", url])
    assert done.stdout == "through a closed INPUT chain"
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "no pinhole")


def test_the_peer_once_and_nobody_else(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    control = through_socks(lab, server)
    listener, pinhole = open_pinhole(lab, gateway, control)
    public = split(pinhole["public"])
    assert public[0] == ROUTER_OUT4
    assert (pinhole["backend"], pinhole["peer"]) == ("userspace", SERVER4)
    assert not reaches(lab, "stranger", public)
    assert not reaches(lab, "outside", (public[0], public[1] ^ 1))
    with lab.connect("outside", *public) as peer:
        accepted, _ = listener.accept()
        peer.sendall(b"hello")
        assert accepted.recv(5) == b"hello"
        accepted.sendall(b"back")
        assert peer.recv(4) == b"back"
        accepted.close()
    assert not reaches(lab, "outside", public)
    assert not reaches(lab, "stranger", public)
    listener.close()
    control.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flows to end")
    assert gateway.admin("pinholes") == []


def test_the_end_of_the_session_lets_nobody_in(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    control = through_socks(lab, server)
    listener, pinhole = open_pinhole(lab, gateway, control)
    control.close()
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the pinhole to close")
    assert "algate 1 " not in lab.run("router", ["nft", "list", "table", "inet", table(lab)]).stdout
    assert not reaches(lab, "outside", split(pinhole["public"]))
    listener.close()


def test_bind_for_whoever_comes(lab: Lab, gateway: Gateway) -> None:
    """A BIND of an address that is not known: the worker decides who may, the broker lets all knock."""
    control = Control(lab, ROUTER_IN4, 1080)
    control.send(b"\5\1\0" + b"\5\2\0\1" + socket.inet_aton(STRANGER4) + bytes(2))
    answer = b""
    while len(answer) < 12:
        answer += control.socket.recv(12 - len(answer))
    assert answer[2:4] == b"\5\0", answer
    public = (socket.inet_ntoa(answer[6:10]), int.from_bytes(answer[10:12], "big"))
    (pinhole,) = gateway.admin("pinholes")
    assert split(pinhole["public"]) == public
    assert not reaches(lab, "outside", public)
    with lab.connect("stranger", *public) as peer:
        peer.sendall(b"hello")
        second = b""
        while len(second) < 15:
            second += control.socket.recv(15 - len(second))
        assert second[:2] == b"\5\0"
        assert second[10:] == b"hello"
    control.close()
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "no pinhole")


def test_udp_associate(lab: Lab, gateway: Gateway) -> None:
    client = associate(lab)
    with udp(lab, "outside", SERVER4, PORT) as server, udp(lab, "stranger", STRANGER4) as stranger:
        seen = works(client, server)
        assert works(client, server) == seen
        (pinhole,) = gateway.admin("pinholes")
        assert (pinhole["backend"], pinhole["peer"]) == ("userspace", SERVER4)
        before = pinhole["packets_in"]
        server.sendto(b"once more", seen)
        stranger.sendto(b"intruder", seen)
        lab.wait_for(lambda: gateway.admin("pinholes")[0]["packets_in"] > before, 5, "the peer's own datagram")
    client.close()
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 10, "no pinhole")


def test_kernel_and_socks_pinholes_share_one_quota(lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    control = through_socks(lab, server)
    listener, _ = open_pinhole(lab, gateway, control)
    direct = Control(lab, SERVER4)
    direct.login(server.user, server.password)
    second, _ = open_pinhole(lab, gateway, direct)
    rows = gateway.admin("pinholes")
    assert sorted(row["backend"] for row in rows) == ["kernel", "userspace"]
    (broker,) = [row for row in gateway.admin("status") if row.get("process") == "broker"]
    assert broker["pinholes"] == 2
    for sock in (listener, second, control, direct):
        sock.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flows to end")


def table(lab: Lab) -> str:
    tables = lab.run("router", ["nft", "list", "tables", "inet"]).stdout.split()
    return next(name for name in tables if name.startswith("algate"))
