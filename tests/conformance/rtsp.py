"""`python -m tests.conformance.rtsp`: RTSP with the gateway and without; the kernel has no helper for it.

Needs root. Puts the table into docs/protocols/rtsp.md. With `--check` it writes nothing. Exit code 1 where the gateway
failed.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.table import Trial, gateway, main, plain_nat
from tests.lab import servers
from tests.lab.lab import CLIENT4, SERVER4, STRANGER4, Lab, Role
from tests.lab.peers import installed

PAGE = Path(__file__).parents[2] / "docs" / "protocols" / "rtsp.md"
PORT = 8554
WAIT = 3.0  # seconds until something that should have come has not
URL = f"rtsp://{SERVER4}:{PORT}"


def ffmpeg(title: str, *arguments: str) -> Trial:
    def attempt(lab: Lab) -> None:
        process = servers.gst_rtsp(lab, SERVER4, PORT)
        try:
            program = installed("ffmpeg", "/usr/bin/ffmpeg")
            said = lab.run("inside", [program, "-nostdin", "-hide_banner", *arguments], timeout=40).stderr
            assert re.search(r"frame=\s*20\b", said), said
        finally:
            lab.stop(process)

    return Trial(title, attempt)


@contextlib.contextmanager
def connection(lab: Lab) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's connection, and its server's end."""
    with lab.listen("outside", SERVER4, PORT) as listener, lab.connect("inside", SERVER4, PORT) as client:
        server, _ = listener.accept()
        with server:
            for end in (client, server):
                end.settimeout(WAIT)
            yield client, server


@contextlib.contextmanager
def udp(lab: Lab, role: Role, host: str, port: int = 0) -> Iterator[socket.socket]:
    with lab.enter(role):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.bind((host, port))
        made.settimeout(WAIT)
        yield made


def set_up(client: socket.socket, server: socket.socket, pieces: int = 1, transport: str = "") -> tuple[str, str, int]:
    """A SETUP, in so many segments: how the server and how the client read ports, and the public port."""
    transport = transport or "RTP/AVP;unicast;client_port=5000-5001"
    said = f"SETUP {URL}/a RTSP/1.0\r\nCSeq: 1\r\nTransport: {transport}\r\n\r\n".encode()
    for part in range(pieces):
        client.sendall(said[part * len(said) // pieces : (part + 1) * len(said) // pieces])
    read = until(server)
    found = re.search(r"(?:client_port=|dest_addr=\":)(\d+)", read)
    assert found is not None
    chosen = re.search(r"Transport: ([^,\r]*)", read)
    assert chosen is not None
    server.sendall(f"RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 7\r\nTransport: {chosen[1]}\r\n\r\n".encode())
    return read, until(client), int(found[1])


def until(end: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += end.recv(4096)
    return data.decode()


def media(lab: Lab, client: socket.socket, server: socket.socket, **how: int | str) -> str:
    """What the client reads in the answer, when a picture has come in."""
    _, read, port = set_up(client, server, **how)  # type: ignore[arg-type]
    with udp(lab, "inside", CLIENT4, 5000) as rtp, udp(lab, "outside", SERVER4) as sender:
        sender.sendto(b"picture", (public(server), port))
        assert rtp.recv(100) == b"picture"
    return read


def public(server: socket.socket) -> str:
    """The address as which the server sees the client."""
    return str(server.getpeername()[0])


def comes_in(lab: Lab) -> None:
    with connection(lab) as (client, server):
        media(lab, client, server)


def in_pieces(lab: Lab) -> None:
    with connection(lab) as (client, server):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        media(lab, client, server, pieces=9)


def list_of_transports(lab: Lab) -> None:
    with connection(lab) as (client, server):
        media(lab, client, server, transport="RTP/AVP;unicast;client_port=5000-5001,RTP/AVP/TCP;interleaved=0-1")


def version_2(lab: Lab) -> None:
    with connection(lab) as (client, server):
        media(lab, client, server, transport='RTP/AVP/UDP;unicast;dest_addr=":5000"/":5001"')


def restored(lab: Lab) -> None:
    with connection(lab) as (client, server):
        assert "client_port=5000-5001" in media(lab, client, server)


def stranger(lab: Lab) -> None:
    with connection(lab) as (client, server):
        _, _, port = set_up(client, server)
        with udp(lab, "inside", CLIENT4, 5000) as rtp, udp(lab, "stranger", STRANGER4) as sender:
            sender.sendto(b"no", (public(server), port))
            try:
                rtp.recv(100)
            except TimeoutError:
                return
            raise AssertionError("a stranger's packet came in")


SOURCE: tuple[str, ...] = (
    "-re",
    "-f",
    "lavfi",
    "-i",
    "testsrc=size=160x120:rate=15",
    "-frames:v",
    "20",
    "-c:v",
    "mjpeg",
)
SOURCE += ("-pix_fmt", "yuvj420p", "-huffman", "default", "-force_duplicated_matrix", "1", "-f", "rtsp")
NULL = ("-frames:v", "20", "-f", "null", "-")
TRIALS = [
    ffmpeg("ffmpeg plays over UDP", "-rtsp_transport", "udp", "-i", f"{URL}/test", *NULL),
    ffmpeg("ffmpeg plays over TCP", "-rtsp_transport", "tcp", "-i", f"{URL}/test", *NULL),
    ffmpeg("ffmpeg publishes over UDP", *SOURCE, "-rtsp_transport", "udp", f"{URL}/record"),
    Trial("a server that sends from another port than it says", comes_in),
    Trial("SETUP in nine segments", in_pieces),
    Trial("several transports in one SETUP", list_of_transports),
    Trial("RTSP 2.0", version_2),
    Trial("the client reads its own ports", restored),
    Trial("a stranger's packets stay out", stranger),
]
WAYS = {"plain NAT": plain_nat, "algate": gateway(process={"workers": 1})}

if __name__ == "__main__":
    sys.exit(main("tests.conformance.rtsp", PAGE, TRIALS, WAYS, sys.argv[1:]))
