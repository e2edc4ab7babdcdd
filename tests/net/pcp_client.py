"""A small client of PCP (RFC 6887), written from the RFC and not from the gateway's code."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import struct
from typing import NamedTuple

from tests.lab.lab import Lab, Role

PORT = 5351
TCP, UDP = 6, 17
PREFER_FAILURE = b"\x02\0\0\0"


class Answer(NamedTuple):
    """What the server said. Of an error the fields of MAP and PEER are what was asked."""

    data: bytes
    version: int
    opcode: int
    result: int
    lifetime: int
    epoch: int
    nonce: bytes = b""
    protocol: int = 0
    inside: int = 0
    port: int = 0
    address: str = ""
    remote: tuple[str, int] = ("", 0)


def packed(address: str) -> bytes:
    ip = ipaddress.ip_address(address)
    return bytes(10) + b"\xff\xff" + ip.packed if ip.version == 4 else ip.packed


def filter_option(prefix: str, port: int = 0) -> bytes:
    network = ipaddress.ip_network(prefix)
    length = network.prefixlen + (96 if network.version == 4 else 0)
    return b"\x03\0\0\x14" + struct.pack("!BBH", 0, length, port) + packed(str(network.network_address))


FORGET_FILTERS = b"\x03\0\0\x14" + bytes(20)


def third_party(address: str) -> bytes:
    return b"\x01\0\0\x10" + packed(address)


def read(data: bytes) -> Answer:
    version, opcode, _, result, lifetime, epoch = struct.unpack_from("!BBBBII", data)
    head = Answer(data, version, opcode & 0x7F, result, lifetime, epoch)
    assert opcode & 0x80
    if head.opcode not in (1, 2) or len(data) < 60:
        return head
    nonce, protocol, _, inside, port, address = struct.unpack_from("!12sB3sHH16s", data, 24)
    ip = ipaddress.IPv6Address(address)
    head = head._replace(nonce=nonce, protocol=protocol, inside=inside, port=port, address=str(ip.ipv4_mapped or ip))
    if head.opcode == 2 and len(data) >= 80:
        remote_port, _, remote = struct.unpack_from("!H2s16s", data, 60)
        ip = ipaddress.IPv6Address(remote)
        head = head._replace(remote=(str(ip.ipv4_mapped or ip), remote_port))
    return head


class PcpClient:
    """A socket of one host, which asks one server."""

    def __init__(self, lab: Lab, role: Role, own: str, server: str, interface: str = "eth0") -> None:
        self.own = own
        with lab.enter(role):
            self.sock = socket.socket(socket.AF_INET6 if ":" in own else socket.AF_INET, socket.SOCK_DGRAM)
            scope = socket.if_nametoindex(interface) if server.startswith("fe80") else 0
        self.sock.bind((own, 0))
        self.server = (server, PORT, 0, scope) if ":" in server else (server, PORT)
        self.nonce = secrets.token_bytes(12)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> PcpClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes, timeout: float = 5.0) -> Answer | None:
        """Send a request, again after half a second as clients do, and return its answer."""
        self.sock.settimeout(0.5)
        for _ in range(max(1, int(timeout / 0.5))):
            self.sock.sendto(data, self.server)
            try:
                answer, source = self.sock.recvfrom(2000)
            except TimeoutError:
                continue
            assert source[:2] == self.server[:2], "the answer leaves from the address that was asked"
            return read(answer)
        return None

    def request(
        self,
        port: int,
        *,
        protocol: int = UDP,
        lifetime: int = 3600,
        suggested: int = 0,
        suggested_host: str = "",
        options: bytes = b"",
        nonce: bytes | None = None,
        own: str | None = None,
    ) -> bytes:
        head = struct.pack("!BBHI16s", 2, 1, 0, lifetime, packed(own or self.own))
        wanted = packed(suggested_host or ("::" if ":" in self.own else "0.0.0.0"))
        return head + struct.pack("!12sB3sHH16s", nonce or self.nonce, protocol, b"", port, suggested, wanted) + options

    def map(self, port: int, **more: object) -> Answer:
        answer = self.send(self.request(port, **more))  # type: ignore[arg-type]
        assert answer is not None, "no answer"
        return answer

    def peer(self, port: int, remote: tuple[str, int], **more: object) -> Answer:
        data = self.request(port, **more)  # type: ignore[arg-type]
        data = data[:1] + b"\x02" + data[2:60] + struct.pack("!H2s16s", remote[1], b"", packed(remote[0])) + data[60:]
        answer = self.send(data)
        assert answer is not None, "no answer"
        return answer

    def announce(self) -> Answer | None:
        return self.send(struct.pack("!BBHI16s", 2, 0, 0, 0, packed(self.own)))
