"""A TCP client made of raw packets: for segments that no kernel would send."""

from __future__ import annotations

import socket
import struct
import time

from tests.lab.lab import Lab, Role

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


class RawTcp:
    """One IPv4 connection. The kernel of the role knows nothing of it, and is kept from resetting it."""

    def __init__(self, lab: Lab, role: Role, source: str, host: str, port: int, source_port: int = 47000) -> None:
        self._source, self._host = source, host
        self._ports = source_port, port
        match = ["-p", "tcp", "--sport", str(source_port), "--tcp-flags", "RST", "RST"]
        lab.run(role, ["iptables", "-I", "OUTPUT", *match, "-m", "ttl", "--ttl-eq", "64", "-j", "DROP"])
        with lab.enter(role):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 63)  # tells ours from the kernel's
        self._socket.settimeout(5)
        self.start = 1000
        self._ack = 0
        self.send(b"", 0, SYN)
        while True:
            flags, sequence, _ = self._receive()
            if flags & SYN:
                break
        self.start += 1
        self._ack = sequence + 1
        self.send(b"", 0)

    def send(self, data: bytes, at: int, flags: int = ACK | PSH) -> None:
        """A segment whose data begin at the byte `at` of the stream, whatever was sent before."""
        header = struct.pack("!HHIIBBHHH", *self._ports, self.start + at, self._ack, 5 << 4, flags, 65000, 0, 0)
        pseudo = socket.inet_aton(self._source) + socket.inet_aton(self._host)
        pseudo += struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(header) + len(data))
        checksum = _checksum(pseudo + header + data)
        self._socket.sendto(header[:16] + struct.pack("!H", checksum) + header[18:] + data, (self._host, 0))

    def read(self, size: int) -> bytes:
        """The next `size` bytes of the other side at least, acknowledged."""
        got = b""
        while len(got) < size:
            _, sequence, data = self._receive()
            if data and sequence == self._ack:
                got += data
                self._ack += len(data)
        return got

    def reset(self, at: int) -> None:
        """End it: the next byte of ours would be `at`."""
        self.send(b"", at, RST | ACK)
        self._socket.close()

    def _receive(self) -> tuple[int, int, bytes]:
        """Flags, sequence number and data of the next packet of this connection."""
        end = time.monotonic() + 5
        while time.monotonic() < end:
            packet = self._socket.recv(65535)
            segment = packet[(packet[0] & 15) * 4 :]
            theirs, ours, sequence, _, offset, flags = struct.unpack("!HHIIBB", segment[:14])
            if (ours, theirs) == self._ports:
                return flags, sequence, segment[(offset >> 4) * 4 :]
        raise TimeoutError("no packet")


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
