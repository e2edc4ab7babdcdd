"""A SOCKS client with GSSAPI (RFC 1961), on its own: it shares no code with the gateway. A program of its own because
Kerberos reads its environment once: gssapi_client.py PROXY PORT HOST PORT LEVEL SIZE [corrupt|plain|udp]

Sends SIZE bytes to an echo server, and its end; prints what came back as JSON.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import sys
from typing import Any

import gssapi

MARK = b"this is not for everybody "


class Client:
    def __init__(self, proxy: str, port: int) -> None:
        self.sock = socket.create_connection((proxy, port), 10)
        self.raw = b""
        self.level = 0
        name = gssapi.Name(f"rcmd@{proxy}", gssapi.NameType.hostbased_service)
        flags = (
            gssapi.RequirementFlag.mutual_authentication
            | gssapi.RequirementFlag.integrity
            | gssapi.RequirementFlag.confidentiality
            | gssapi.RequirementFlag.replay_detection
        )
        self.context = gssapi.SecurityContext(name=name, usage="initiate", flags=flags)

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise EOFError(data)
            data += part
        self.raw += data
        return data

    def message(self, kind: int) -> bytes:
        head = self.exactly(2)
        if head != bytes([1, kind]):
            raise EOFError(head)
        return self.exactly(struct.unpack("!H", self.exactly(2))[0])

    def send_message(self, kind: int, token: bytes) -> None:
        self.sock.sendall(struct.pack("!BBH", 1, kind, len(token)) + token)

    def authenticate(self) -> None:
        self.sock.sendall(b"\5\1\1")
        assert self.exactly(2) == b"\5\1"
        token = self.context.step()
        while token:
            self.send_message(1, token)
            token = self.context.step(self.message(1)) if not self.context.complete else None

    def agree(self, level: int) -> None:
        self.send_message(2, self.context.wrap(bytes([level]), False).message)
        answer = self.context.unwrap(self.message(2)).message
        assert len(answer) == 1
        self.level = answer[0]

    def wrap(self, data: bytes) -> bytes:
        return bytes(self.context.wrap(data, self.level != 1).message)

    def send(self, data: bytes) -> None:
        if not self.level:
            self.sock.sendall(data)
            return
        for at in range(0, len(data), 20000):
            self.send_message(3, self.wrap(data[at : at + 20000]))

    def receive(self) -> bytes:
        if not self.level:
            data = self.sock.recv(65536)
            self.raw += data
            return data
        try:
            token = self.message(3)
        except EOFError as end:
            if end.args[0]:
                raise
            return b""
        result = self.context.unwrap(token)
        assert result.encrypted == (self.level != 1)
        return bytes(result.message)


def address(host: str, port: int) -> bytes:
    return b"\1" + socket.inet_aton(host) + port.to_bytes(2, "big")


def main() -> None:
    proxy, proxy_port, host, port, level, size = sys.argv[1:7]
    how = sys.argv[7] if len(sys.argv) > 7 else ""
    client = Client(proxy, int(proxy_port))
    said: dict[str, Any] = {}
    try:
        client.authenticate()
        said["authenticated"] = True
        client.agree(int(level))
        said["level"] = client.level
        client.send(b"\5" + (b"\3" if how == "udp" else b"\1") + b"\0" + address(host, int(port)))
        reply = client.receive()
        said["reply"] = reply[1]
        if how == "udp":
            said |= udp(client, reply, host, int(port))
        elif how == "plain":
            client.sock.sendall(MARK)
        elif how == "corrupt":
            token = bytearray(client.wrap(MARK * 10))
            token[-1] ^= 1
            client.send_message(3, bytes(token))
        if how != "udp":
            said |= echo(client, b"" if how else (MARK * (int(size) // len(MARK) + 1))[: int(size)])
    except (EOFError, ConnectionError) as end:
        said["end"] = str(end)
    print(json.dumps(said))


def echo(client: Client, data: bytes) -> dict[str, Any]:
    client.send(data)
    if data:
        client.sock.shutdown(socket.SHUT_WR)
    received = b""
    while part := client.receive():
        received += part
    return {
        "received": len(received),
        "same": hashlib.sha256(received).digest() == hashlib.sha256(data).digest(),
        "readable": MARK in client.raw,
    }


def udp(client: Client, reply: bytes, host: str, port: int) -> dict[str, Any]:
    relay = (socket.inet_ntoa(reply[4:8]), int.from_bytes(reply[8:10], "big"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        token = client.wrap(bytes(3) + address(host, port) + MARK)
        sock.sendto(struct.pack("!BBH", 1, 3, len(token)) + token, relay)
        raw = sock.recv(65536)
    assert raw[:2] == b"\1\3"
    data = bytes(client.context.unwrap(raw[4:]).message)
    return {"datagram": data[10:].decode(), "readable": MARK in raw}


if __name__ == "__main__":
    main()
