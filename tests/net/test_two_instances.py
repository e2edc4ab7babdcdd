"""Two instances on one router (several run_dirs): neither drops what the other lets through, nor opens for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, ROUTER_IN4, ROUTER_IN6, SERVER4, SERVER6, Lab
from tests.lab.servers import FtpServer
from tests.net.socks_wire import ask5, reply5
from tests.net.udp_client import UDP, Client, silent, udp, works

CONTENT = b"content" * 10_000
ROUNDS = 3  # the first packet of a connection meets other rules than those behind it
BIND = 2


@pytest.fixture(scope="module", params=["first", "second"])
def both(request: pytest.FixtureRequest, lab: Lab) -> Iterator[tuple[Gateway, Gateway]]:
    """The two, in either order: their tables are asked in the order in which they were made."""

    def start(number: int, transparent: bool) -> Gateway:
        low = 40000 + 2000 * number
        return lab.start_gateway(
            lab.write_config(
                socks={"listen": [f"{ROUTER_IN4}:{1080 + number}", f"[{ROUTER_IN6}]:{1080 + number}"]},
                transparent={"port": 10800 + number},
                pinhole={"ports": f"{low}-{low + 1999}"},
                process={"workers": 1},
                alg={"ftp": {"mode": "rewrite" if transparent else "off"}},
            )
        )

    order = (1, 2) if request.param == "first" else (2, 1)
    gateways = {number: start(number, transparent=number == 1) for number in order}
    yield gateways[1], gateways[2]
    for gateway in gateways.values():
        assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@pytest.fixture(scope="module")
def ftp(lab: Lab) -> Iterator[FtpServer]:
    server = lab.vsftpd()
    server.put("pub/file", CONTENT)
    yield server
    server.stop()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("own", "router", "server"), [(CLIENT4, ROUTER_IN4, SERVER4), (CLIENT6, ROUTER_IN6, SERVER6)], ids=["ipv4", "ipv6"]
)
def test_datagrams(lab: Lab, both: tuple[Gateway, Gateway], number: int, own: str, router: str, server: str) -> None:
    """There and back, through an association of each; when it is gone nothing passes any more."""
    control, peer = lab.connect("inside", router, 1080 + number), udp(lab, "outside", server, 5300)
    code, host, port = ask5(control, "0.0.0.0", 0, UDP)
    assert code == 0
    client = Client(control, udp(lab, "inside", own), (host, port))
    for _ in range(ROUNDS):
        seen = works(client, peer)
    assert 40000 + 2000 * number <= seen[1] < 42000 + 2000 * number
    before = len(both[number - 1].log_lines())
    control.close()
    both[number - 1].wait_for_log("pinhole.close.*socks.udp", after=before)
    peer.sendto(b"late", seen)
    silent(client.sock)
    client.sock.close()
    peer.close()


@pytest.mark.parametrize("number", [1, 2])
def test_bind(lab: Lab, both: tuple[Gateway, Gateway], number: int) -> None:
    with lab.connect("inside", ROUTER_IN4, 1080 + number) as control:
        code, host, port = ask5(control, SERVER4, 0, BIND)
        assert code == 0
        with lab.connect("outside", host, port) as peer:
            assert reply5(control)[0] == 0
            for _ in range(ROUNDS):
                peer.sendall(b"data")
                assert control.recv(4) == b"data"


def test_active_ftp(lab: Lab, both: tuple[Gateway, Gateway], ftp: FtpServer) -> None:
    """A pinhole in the kernel, of the instance that reads FTP, with the other's table before or behind."""
    for number in range(ROUNDS):
        fetched = lab.tmp / f"fetched-{number}"
        lab.run("inside", ["curl", "-sS", "--ftp-port", "-", "--disable-eprt", "-o", fetched, ftp.url("pub/file")], 60)
        assert fetched.read_bytes() == CONTENT
