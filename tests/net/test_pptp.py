"""Calls of PPTP through a router that forwards nothing but what the gateway admits: real control connections, GRE that
the test speaks itself, as there is no PPP in every kernel."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.lab import pptp_text as say
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT2_4, CLIENT4, ROUTER_OUT4, SERVER4, STRANGER4, Lab, Role
from tests.net.test_broker_gre import heard, is_silent, packet

PORT, CALL = 1723, 7


@pytest.fixture(scope="module")
def gateway(strict_lab: Lab) -> Iterator[Gateway]:
    gateway = strict_lab.start_gateway(strict_lab.write_config(alg={"pptp": {"mode": "rewrite"}}))
    yield gateway
    assert gateway.stop() == 0, strict_lab.tail_of_logs()


def raw(lab: Lab, role: Role, host: str) -> socket.socket:
    with lab.enter(role):
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE)
        sock.bind((host, 0))
    return sock


class Tunnel:
    """A client and a server with one call. `number`: the call ID that the server has read."""

    def __init__(self, lab: Lab, role: Role, server_id: int) -> None:
        with lab.listen("outside", SERVER4, PORT) as listener:
            self.client = lab.connect(role, SERVER4, PORT)
            self.server, _ = listener.accept()
        for end in (self.client, self.server):
            end.settimeout(10)
        self.up(say.start_request())
        self.down(say.start_reply())
        self.client.sendall(say.call_request(CALL))
        request = self._read(self.server, 168)
        self.number = int.from_bytes(request[12:14], "big")
        assert request == say.call_request(self.number)
        self.server.sendall(say.call_reply(server_id, self.number))
        assert self._read(self.client, 32) == say.call_reply(server_id, CALL)

    def up(self, data: bytes) -> None:
        self.client.sendall(data)
        assert self._read(self.server, len(data)) == data

    def down(self, data: bytes) -> None:
        self.server.sendall(data)
        assert self._read(self.client, len(data)) == data

    @staticmethod
    def _read(sock: socket.socket, length: int) -> bytes:
        found = b""
        while len(found) < length:
            part = sock.recv(length - len(found))
            assert part, found
            found += part
        return found

    def close(self) -> None:
        self.client.close()
        self.server.close()


def test_two_clients_with_one_call_id_and_one_server(strict_lab: Lab, gateway: Gateway) -> None:
    lab = strict_lab
    with (
        raw(lab, "inside", CLIENT4) as near,
        raw(lab, "client2", CLIENT2_4) as beside,
        raw(lab, "outside", SERVER4) as server,
        raw(lab, "stranger", STRANGER4) as stranger,
    ):
        first, second = Tunnel(lab, "inside", 40), Tunnel(lab, "client2", 41)
        assert first.number == CALL
        assert second.number != CALL
        for tunnel, client, number in ((first, near, 40), (second, beside, 41)):
            client.sendto(packet(number, b"LCP"), (SERVER4, 0))
            assert heard(server) == (ROUTER_OUT4, number, b"LCP")
            server.sendto(packet(tunnel.number, b"LCP ack"), (ROUTER_OUT4, 0))
            assert heard(client) == (SERVER4, CALL, b"LCP ack")
            stranger.sendto(packet(tunnel.number, b"no"), (ROUTER_OUT4, 0))
        assert is_silent(near, beside)
        rows = {row["client"]: row for row in gateway.admin("pinholes")}
        assert {row["reason"] for row in rows.values()} == {"pptp.call"}
        assert set(rows) == {CLIENT4, CLIENT2_4}
        # The end of a call, by a message and by the end of the connection.
        second.client.sendall(say.clear_request(CALL))
        assert second._read(second.server, 16) == say.clear_request(second.number)
        second.down(say.disconnect_notify(41))
        first.close()
        lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the end of both calls")
        for tunnel in (first, second):
            server.sendto(packet(tunnel.number, b"late"), (ROUTER_OUT4, 0))
        near.sendto(packet(40, b"late"), (SERVER4, 0))
        assert is_silent(near, beside, server)
        second.close()


def test_what_is_not_pptp_opens_nothing(strict_lab: Lab, gateway: Gateway) -> None:
    """A page of the web has a browser send a call request behind its own first line."""
    lab = strict_lab
    with lab.listen("outside", SERVER4, PORT) as listener:
        page = b"POST / HTTP/1.1\r\nContent-Length: 324\r\n\r\n" + say.start_request() + say.call_request(CALL)
        with lab.connect("inside", SERVER4, PORT) as client, listener.accept()[0] as server:
            server.settimeout(10)
            client.sendall(page)
            assert Tunnel._read(server, len(page)) == page
            server.sendall(say.start_reply())
            assert Tunnel._read(client, 156) == say.start_reply()
            gateway.wait_for_log("alg.revoke .*rule=pptp.not-pptp")
            assert gateway.admin("pinholes") == []
