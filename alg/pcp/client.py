"""The messages of PCP (RFC 6887) and of NAT-PMP (RFC 6886), as a client writes and reads them."""

from __future__ import annotations

import ipaddress
import struct
from typing import Literal, NamedTuple

from alg.pcp import natpmp, pcp
from alg.pcp.pcp import Address

PORT = 5351
"""The port at which servers of both are asked."""

Transport = Literal["tcp", "udp"]

_R = 0x80
_PROTOCOLS = {"tcp": pcp.TCP, "udp": pcp.UDP}
_OPCODES = {"tcp": 2, "udp": 1}  # of NAT-PMP (RFC 6886, section 3.3)


class PcpAnswer(NamedTuple):
    """An answer of a PCP server. `version` is not 2 if the server does not speak PCP. `lifetime` and `epoch` are in
    seconds. The other fields are those of a MAP answer; without one `external` is None."""

    version: int
    opcode: int
    result: int
    lifetime: int
    epoch: int
    nonce: bytes = b""
    protocol: int = 0
    port: int = 0
    external_port: int = 0
    external: Address | None = None


class PmpAnswer(NamedTuple):
    """An answer of a NAT-PMP server. `address` answers a request for the address; the ports and the `lifetime` in
    seconds answer a request for a mapping."""

    opcode: int
    result: int
    epoch: int
    address: ipaddress.IPv4Address | None = None
    port: int = 0
    public_port: int = 0
    lifetime: int = 0


def pcp_announce(own: Address) -> bytes:
    """Encode a request for the epoch (section 14.1) of the client at `own`."""
    return pcp.REQUEST.pack(pcp.VERSION, pcp.Opcode.ANNOUNCE, 0, 0, pcp.written_address(own))


def pcp_map(own: Address, nonce: bytes, transport: Transport, port: int, wanted: int, lifetime: int) -> bytes:
    """A request for a mapping of `port` (section 11.1) with the external port `wanted`, for `lifetime` seconds; 0: it
    is to end."""
    anywhere = ipaddress.ip_address("0.0.0.0" if own.version == 4 else "::")
    head = pcp.REQUEST.pack(pcp.VERSION, pcp.Opcode.MAP, 0, lifetime, pcp.written_address(own))
    return head + pcp.MAP_BODY.pack(nonce, _PROTOCOLS[transport], bytes(3), port, wanted, pcp.written_address(anywhere))


def answers_map(answer: PcpAnswer, nonce: bytes, transport: Transport, port: int) -> bool:
    """Whether an answer belongs to this request for a mapping (section 11.4). A failure repeats the request as well; a
    server that does not know the opcode or the version may leave that out."""
    if answer.opcode != pcp.Opcode.MAP:
        return False
    if answer.external is None:
        return answer.result != pcp.Result.SUCCESS
    return (answer.nonce, answer.protocol, answer.port) == (nonce, _PROTOCOLS[transport], port)


def read_pcp(data: bytes) -> PcpAnswer | None:
    """Read an answer; None if the bytes are not one. Of an answer in another version only the version is read (section
    9)."""
    if len(data) < 4 or len(data) > pcp.LONGEST or not data[1] & _R:
        return None
    if data[0] != pcp.VERSION:
        return PcpAnswer(data[0], data[1] & ~_R, int(pcp.Result.UNSUPP_VERSION), 0, 0)
    if len(data) < pcp.RESPONSE.size or len(data) % 4:
        return None
    version, opcode, _, result, lifetime, epoch, _ = pcp.RESPONSE.unpack_from(data)
    head = PcpAnswer(version, opcode & ~_R, result, lifetime, epoch)
    if head.opcode != pcp.Opcode.MAP or len(data) < pcp.RESPONSE.size + pcp.MAP_BODY.size:
        return head
    nonce, protocol, _, port, external_port, packed = pcp.MAP_BODY.unpack_from(data, pcp.RESPONSE.size)
    external = ipaddress.IPv6Address(packed)
    return head._replace(
        nonce=nonce,
        protocol=protocol,
        port=port,
        external_port=external_port,
        external=external.ipv4_mapped or external,
    )


def pmp_address() -> bytes:
    """Encode a NAT-PMP request for the public address (section 3.2)."""
    return bytes([natpmp.VERSION, 0])


def pmp_map(transport: Transport, port: int, wanted: int, lifetime: int) -> bytes:
    """Encode a NAT-PMP request for a mapping of `port` with the public port `wanted`, for `lifetime` seconds (section
    3.3). A `lifetime` of 0 ends the mapping; `wanted` must be 0 then (section 3.4)."""
    return struct.pack("!BBHHHI", natpmp.VERSION, _OPCODES[transport], 0, port, wanted, lifetime)


def answers_pmp(answer: PmpAnswer, transport: Transport, port: int) -> bool:
    """Whether an answer belongs to a request for a mapping of this port."""
    return answer.opcode == _OPCODES[transport] and (answer.port == port or answer.result != natpmp.Result.SUCCESS)


def read_pmp(data: bytes) -> PmpAnswer | None:
    """Read an answer of NAT-PMP; None if the bytes are not one."""
    if len(data) < natpmp.ANSWER.size or data[0] != natpmp.VERSION or not data[1] & _R:
        return None
    _, opcode, result, epoch = natpmp.ANSWER.unpack_from(data)
    head = PmpAnswer(opcode & ~_R, result, epoch)
    if head.opcode == 0 and len(data) >= 12:
        return head._replace(address=ipaddress.IPv4Address(data[8:12]))
    if head.opcode in (1, 2) and len(data) >= 16:
        port, public_port, lifetime = struct.unpack_from("!HHI", data, 8)
        return head._replace(port=port, public_port=public_port, lifetime=lifetime)
    return head if result != natpmp.Result.SUCCESS else None


class Epoch:
    """Whether a server has lost what it knew of its clients (RFC 6887 section 8.5). Pure: times are arguments,
    monotonic, in seconds."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None  # what the server's clock said, and ours

    def goes_on(self, epoch: int, now: float) -> bool:
        """Note what a server has said, and return whether its clock has gone on as ours has."""
        last, self._last = self._last, (epoch, now)
        if last is None:
            return True
        server, client = epoch - last[0], now - last[1]
        if server < -1:
            return False
        return client + 2 >= server - server / 16 and server + 2 >= client - client / 16
