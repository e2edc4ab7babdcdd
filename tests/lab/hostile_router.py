"""A router that lies: `python hostile_router.py HOW OWN` answers at OWN by PCP, NAT-PMP or UPnP, as HOW says, so that
whoever asks it has as much work with it as it can make.

The first word of HOW is the protocol. It prints "ready", and counts what it was asked on SIGTERM. A program of its own,
so that it is as quick as a program can be.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

PCP_PORT, SSDP_PORT, HTTP_PORT = 5351, 1900, 5000
IGD = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
CONNECTION = "urn:schemas-upnp-org:service:WANIPConnection:1"
ADDRESS = "1.2.3.2"
Where = tuple[str, int]

asked: Counter[str] = Counter()
started = time.monotonic()


def epoch() -> int:
    """Seconds since the start."""
    return 1000 + int(time.monotonic() - started)


def mapped(address: str) -> bytes:
    """An address of IPv4 as PCP writes it."""
    return bytes(10) + b"\xff\xff" + socket.inet_aton(address)


# --- PCP --------------------------------------------------------------------------------------------------------------


def pcp(
    request: bytes,
    *,
    nonce: bytes | None = None,
    result: int = 0,
    lifetime: int | None = None,
    now: int | None = None,
    port: int | None = None,
    address: bytes | None = None,
) -> bytes:
    """An honest answer, but for what is given."""
    opcode, asked_for = request[1], struct.unpack_from("!I", request, 4)[0]
    lifetime = (asked_for if opcode == 1 else 0) if lifetime is None else lifetime
    head = struct.pack("!BBBBII12x", 2, 0x80 | opcode, 0, result, lifetime, epoch() if now is None else now)
    if opcode != 1:
        return head
    inside, wanted = struct.unpack_from("!HH", request, 40)
    public = struct.pack("!HH", inside, (wanted or inside) if port is None else port)
    return head + (nonce or request[24:36]) + request[36:40] + public + (address or mapped(ADDRESS))


def natpmp(request: bytes, *, address: str = ADDRESS, now: int | None = None, port: int | None = None) -> bytes:
    """An honest answer of NAT-PMP, but for what is given."""
    head = struct.pack("!BBHI", 0, 0x80 | request[1], 0, epoch() if now is None else now)
    if request[1] == 0:
        return head + socket.inet_aton(address)
    inside, wanted, lifetime = struct.unpack_from("!HHI", request, 4)
    return head + struct.pack("!HHI", inside, (wanted or inside) if port is None else port, lifetime)


def noise(request: bytes) -> Iterator[bytes]:
    """Answers of which none is right: other nonces, other ports, other opcodes, cut, and what is no answer at all."""
    wrong = [
        pcp(request, nonce=bytes(12)) if request[:2] == b"\2\1" else b"\0\x83" + bytes(14),
        struct.pack("!BBBBII12x", 2, 0x85, 0, 0, 0, 0),
        pcp(request)[:23] if request[0] == 2 else b"\0\x80",
        request,
        b"\2\x85" + random.randbytes(58),
        bytes(1400),
        b"",
    ]
    return itertools.cycle(wrong)


def flood(sock: socket.socket, request: bytes, where: Where) -> None:
    """Wrong answers for ten seconds, as many as there can be."""
    until = time.monotonic() + 10
    batch = list(itertools.islice(noise(request), 70))
    while time.monotonic() < until:
        for data in batch:
            with contextlib.suppress(OSError):
                sock.sendto(data, where)


def another() -> str:
    """An address that differs each time."""
    return f"1.2.{random.randrange(4, 250)}.{random.randrange(1, 250)}"


PCP: dict[str, Callable[[bytes], list[bytes]]] = {
    "nonces": lambda data: [pcp(data, nonce=random.randbytes(12)), pcp(data, nonce=bytes(12))],
    "epochs": lambda data: [pcp(data, now=random.getrandbits(32))],
    "addresses": lambda data: [pcp(data, address=mapped(another()))],
    "ports": lambda data: [pcp(data, port=random.randrange(1024, 65536))],
    "refusals": lambda data: [pcp(data, result=2 if data[1] == 1 else 0, lifetime=0xFFFFFFFF)],
    "unknown-results": lambda data: [pcp(data, result=random.randrange(14, 256) if data[1] == 1 else 0)],
    "nothing-given": lambda data: [pcp(data, lifetime=0, port=0, address=bytes(16))],
    "loopback": lambda data: [pcp(data, address=mapped("127.0.0.1"))],
    "reserved": lambda data: [pcp(data, address=mapped("255.255.255.255"))],
    "ipv6": lambda data: [pcp(data, address=socket.inet_pton(socket.AF_INET6, "2001:db8::1"))],
    "a-second": lambda data: [pcp(data, lifetime=1)],
    "for-ever": lambda data: [pcp(data, lifetime=0xFFFFFFFF)],
    "silent-to-maps": lambda data: [] if data[1] == 1 else [pcp(data)],
    "cut": lambda data: [pcp(data)[:length] for length in range(61)],
    "other-versions": lambda data: [bytes([version]) + pcp(data)[1:] for version in (1, 3, 255)],
    "a-thousand-each": lambda data: [pcp(data, port=port) for port in range(2000, 3000)],
}
PMP: dict[str, Callable[[bytes], list[bytes]]] = {
    "epochs": lambda data: [natpmp(data, now=random.getrandbits(32))],
    "addresses": lambda data: [natpmp(data, address=another())],
    "ports": lambda data: [natpmp(data, port=random.randrange(65536))],
    "unknown-results": lambda data: [natpmp(data)[:2] + struct.pack("!H", random.randrange(6, 65536)) + bytes(12)],
    "loopback": lambda data: [natpmp(data, address="127.0.0.1")],
    "cut": lambda data: [natpmp(data)[:length] for length in range(17)],
}


def serve_datagrams(own: str, protocol: str, how: str) -> None:
    """Answer at the port of PCP and NAT-PMP."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((own, PCP_PORT))
    print("ready", flush=True)
    while True:
        data, where = sock.recvfrom(2000)
        ends = data[1:2] == b"\1" and data[4:8] == bytes(4) and protocol == "pcp"
        asked["pcp end" if ends else f"{protocol} {data[1] if len(data) > 1 else '?'}"] += 1
        if (protocol == "pcp") != (data[:1] == b"\2"):
            continue
        if how == "flood":
            threading.Thread(target=flood, args=(sock, data, where), daemon=True).start()
        elif how in ("slow", "late"):
            pause = (1.5 if how == "slow" else 3.0) if data[1] == 1 else 0.0
            threading.Timer(pause, sock.sendto, (pcp(data), where)).start()
        elif how == "flood-at-maps":  # it is found, as it answers what a search asks
            if data[1] == 1:
                threading.Thread(target=flood, args=(sock, data, where), daemon=True).start()
            else:
                sock.sendto(pcp(data), where)
        else:
            for answer in (PCP if protocol == "pcp" else PMP)[how](data):
                sock.sendto(answer, where)


# --- UPnP -------------------------------------------------------------------------------------------------------------


def answer(body: bytes | str, status: str = "200 OK", fields: str = "") -> bytes:
    """An answer of HTTP."""
    body = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n{fields}\r\n"
    return head.encode() + body


def description(control: str = "/ctl", more: str = "") -> str:
    """A description with one service."""
    service = f"<service><serviceType>{CONNECTION}</serviceType><controlURL>{control}</controlURL></service>"
    return f'<?xml version="1.0"?><root><device>{more}<serviceList>{service}</serviceList></device></root>'


def said(action: str, outputs: str = "") -> bytes:
    """An answer to an action."""
    inner = f"<u:{action}Response xmlns:u='{CONNECTION}'>{outputs}</u:{action}Response>"
    return answer(f"<s:Envelope xmlns:s='e'><s:Body>{inner}</s:Body></s:Envelope>")


def fault(code: object) -> bytes:
    """A refusal."""
    inner = f"<Fault><detail><UPnPError><errorCode>{code}</errorCode></UPnPError></detail></Fault>"
    return answer(f"<Envelope><Body>{inner}</Body></Envelope>", "500 Internal Server Error")


def action_of(question: bytes) -> str:
    """The action that is asked for; "" for a description."""
    return question.partition(b"#")[2].partition(b'"')[0].decode()


def with_address(question: bytes, address: str) -> bytes:
    """What an honest gateway says that has this address."""
    if question.startswith(b"GET"):
        return answer(description())
    action = action_of(question)
    outputs = f"<NewExternalIPAddress>{address}</NewExternalIPAddress>" if action == "GetExternalIPAddress" else ""
    return said(action, outputs)


def honest(question: bytes) -> bytes:
    """What an honest gateway says."""
    return with_address(question, ADDRESS)


LETTERS = "abcdefghi"
GROWING = [f'<!ENTITY {b} "{f"&{a};" * 20}">' for a, b in itertools.pairwise(LETTERS)]
BOMB = f'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "{"x" * 1000}">{"".join(GROWING)}]><root>&i;</root>'


def slowly(sock: socket.socket, data: bytes, pause: float) -> None:
    """Byte by byte, and then on and on with the last one."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    until = time.monotonic() + 60
    for byte in itertools.chain(data, itertools.repeat(ord("x"))):
        sock.sendall(bytes([byte]))
        if pause:
            time.sleep(pause)
        if time.monotonic() > until:
            return


def on_and_on(sock: socket.socket, data: bytes, piece: bytes) -> None:
    """An answer without an end."""
    sock.sendall(data)
    while True:
        sock.sendall(piece)


def speak(sock: socket.socket, question: bytes, how: str, own: str) -> None:
    """Answer one question."""
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    is_description = question.startswith(b"GET")
    late = how.startswith("then-")  # it is found, and behaves so at mappings only
    if late and action_of(question) in ("", "GetExternalIPAddress"):
        sock.sendall(honest(question))
        return
    match how.removeprefix("then-"):
        case "dribble":
            slowly(sock, b"HTTP/1.1 200 OK\r\nX: ", 0.3)
        case "quick-dribble":
            slowly(sock, b"HTTP/1.1 200 OK\r\nX: ", 0)
        case "endless-head":
            on_and_on(sock, b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 1000 + b"\r\n")
        case "endless-body":
            on_and_on(sock, head + b"<root>", b"<a>b</a>" * 1000)
        case "endless-chunks":
            on_and_on(sock, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\n<a/>\n\r\n" * 500)
        case "a-long-length":
            on_and_on(sock, b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n", b"<a>" * 1000)
        case "giant":
            sock.sendall(answer(description(more="<a>b</a>" * 2_000_000)))
        case "deep":
            sock.sendall(answer("<a>" * 9000 + "</a>" * 7000))
        case "wide":
            sock.sendall(answer(description(more="<a/>" * 15000)))
        case "bomb":
            sock.sendall(answer(BOMB))
        case "silent" | "many-places":
            time.sleep(60)
        case "closing":
            pass
        case "redirect":
            location = f"Location: http://{own}:{HTTP_PORT}/{random.random()}\r\n"
            sock.sendall(answer("", "301 Moved Permanently", location))
        case "redirect-inside":
            sock.sendall(answer("", "307 Temporary Redirect", "Location: http://192.168.56.10:8080/\r\n"))
        case "control-elsewhere":
            sock.sendall(answer(description("http://192.168.56.10:8080/ctl")) if is_description else honest(question))
        case "control-of-no-ascii":
            sock.sendall(answer(description("/ctl/\u00fc\u2028")) if is_description else honest(question))
        case "control-with-lines":
            control = "/c&#10;Host: evil&#13;&#10; x\u0085"
            sock.sendall(answer(description(control)) if is_description else honest(question))
        case "no-address":
            lies = ["0.0.0.0", "127.0.0.1", "999.1.1.1", "<b>1.2.3.2</b>", "::1", "", "x" * 5000, "255.255.255.255"]
            sock.sendall(with_address(question, random.choice(lies)))
        case "addresses":
            sock.sendall(with_address(question, another()))
        case "taken":
            sock.sendall(fault(718))
        case "no-leases":
            sock.sendall(fault(725))
        case "no-codes":
            sock.sendall(fault(random.choice(["0", "-1", "99999", "x", "", "\u0667\u0661\u0668", "718 "])))
        case "no-status":
            heads = [b"HTTP/9.9 xyz\r\n\r\n", b"\0" * 3000, b"HTTP/1.1 200\r\n", b"HTTP/1.1 999 \r\n\r\n"]
            sock.sendall(random.choice(heads))
        case "taken-then-slow":
            if action_of(question) == "AddPortMapping":
                port = int(question.partition(b"NewExternalPort>")[2].partition(b"<")[0])
                print("AddPortMapping", port, flush=True)
                if port == 5000:
                    sock.sendall(fault(718))
                    return
                time.sleep(1.5)
            sock.sendall(honest(question))
        case "slow-taken":  # each refusal just in time
            time.sleep(3.5)
            sock.sendall(fault(718))
        case other:
            raise SystemExit(f"unknown: {other}")


def serve_http(own: str, how: str) -> None:
    """Answer at the port of HTTP, each connection in a thread of its own."""
    listener = socket.create_server((own, HTTP_PORT), backlog=64)

    def talk(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            question = sock.recv(8192)
            while question.startswith(b"POST") and b"Envelope>" not in question:
                question += sock.recv(8192)
            asked["http " + (action_of(question) or "GET")] += 1
            speak(sock, question, how, own)

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=talk, args=(sock,), daemon=True).start()


def serve_upnp(own: str, how: str) -> None:
    """Answer searches, and by HTTP."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", SSDP_PORT))
    group = socket.inet_aton("239.255.255.250") + socket.inet_aton(own)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
    threading.Thread(target=serve_http, args=(own, how), daemon=True).start()

    def found(location: str) -> bytes:
        return f"HTTP/1.1 200 OK\r\nST: {IGD}\r\nUSN: uuid:1::{IGD}\r\nLOCATION: {location}\r\n\r\n".encode()

    print("ready", flush=True)
    while True:
        _, where = sock.recvfrom(2000)
        asked["search"] += 1
        match how:
            case "many-places":
                for number in range(2000):
                    sock.sendto(found(f"http://{own}:{HTTP_PORT}/{number}"), where)
            case "places-elsewhere":
                for place in ("192.168.56.10:8080/", "127.0.0.1:5000/", "[::1]:80/", f"{own}:99999/", "\x7f/", "[/"):
                    sock.sendto(found(f"http://{place}"), where)
                    sock.sendto(found(f"http://{own}@{place}"), where)
            case "answer-flood":
                until = time.monotonic() + 6
                while time.monotonic() < until:
                    for data in (b"", random.randbytes(1400), found("http://[/"), b"HTTP/1.1 200 OK\r\n" * 80):
                        with contextlib.suppress(OSError):
                            sock.sendto(data, where)
            case _:
                sock.sendto(found(f"http://{own}:{HTTP_PORT}/root.xml"), where)


# --- in another one's name --------------------------------------------------------------------------------------------


def forge(own: str) -> None:
    """Send wrong answers in the name of who has the address, to whoever asks it at the port of PCP and NAT-PMP."""
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    sender.bind((own, 0))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("forged", asked["forged"], flush=True)))
    print("ready", flush=True)
    while True:
        packet = sniffer.recv(2000)
        length = 4 * (packet[0] & 15)
        if packet[9] != socket.IPPROTO_UDP or packet[16:20] != socket.inet_aton(own):
            continue
        source, destination = struct.unpack_from("!HH", packet, length)
        if destination != PCP_PORT:
            continue
        client = socket.inet_ntoa(packet[12:16])
        for data in itertools.islice(noise(packet[length + 8 :]), 700):
            head = struct.pack("!HHHH", PCP_PORT, source, 8 + len(data), 0)  # without a checksum, as UDP allows
            with contextlib.suppress(OSError):
                sender.sendto(head + data, (client, 0))
                asked["forged"] += 1


def main() -> None:
    """Serve until SIGTERM."""

    def end(*_: object) -> None:
        print(dict(asked), flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    protocol, _, how = sys.argv[1].partition(" ")
    if protocol == "forger":
        forge(sys.argv[2])
    elif protocol == "upnp":
        serve_upnp(sys.argv[2], how)
    else:
        serve_datagrams(sys.argv[2], protocol, how)


if __name__ == "__main__":
    main()
