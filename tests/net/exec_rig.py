"""What the tests of `algate exec` share: a gateway, servers behind it, a sniffer, and the call itself."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, SERVER4, SERVER6, Lab
from tests.lab.private import shown
from tests.lab.servers import _listens

ALGATE = Path(sys.executable).parent / "algate"
ENGINES = ["namespace", "seccomp"]
OURS = f"socks5://{ROUTER_IN4}:1080"
NAME, NAME6 = "web.example", "six.example"  # NAME6 has an IPv6 address only
WEB, ECHO = 8080, 7030


# `python -m http.server` listens with a backlog of 5. Of 250 connections at once the kernel then makes 213 by SYN
# cookies, and takes six more at each wave of retransmissions: after 90 seconds 150 are not served, and when the cookies
# are too old it resets them.
PAGES = """
import functools, http.server, socket, sys
class Server(http.server.ThreadingHTTPServer):
    address_family, request_queue_size = socket.AF_INET6, 4096
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
Server(("::", int(sys.argv[2])), handler).serve_forever()
"""


def gateway_before_servers(lab: Lab) -> Iterator[Gateway]:
    """A fixture's body: algate's SOCKS server, and behind it web pages, at addresses of both families and by name."""
    lab.dns({NAME: [SERVER4], NAME6: [SERVER6]})
    site = lab.tmp / "site"
    site.mkdir()
    (site / "index.html").write_text("hello\n")
    (site / "hello.json").write_text('{"say": "hello"}\n')
    (site / "big").write_bytes(os.urandom(1 << 20) * 20)
    web = lab.popen("outside", [sys.executable, "-c", PAGES, site, str(WEB)])
    lab.wait_for(lambda: _listens(web, WEB), 20, "the web server")
    config = lab.write_config(process={"workers": 1})
    gateway = lab.start_gateway(config, deadline=90, rules=False)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


def echo_server(lab: Lab) -> Iterator[None]:
    """A fixture's body: datagrams come back with the port that they came from; "other" from another socket."""
    families = ((SERVER4, socket.AF_INET), (SERVER6, socket.AF_INET6))
    with lab.enter("outside"):
        pairs = [[socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)] for _, family in families]

    def serve(sock: socket.socket, other: socket.socket) -> None:
        while True:
            data, peer = sock.recvfrom(65536)
            if data == b"end":
                return
            (other if data == b"other" else sock).sendto(data, peer)

    threads = []
    for (host, _), (sock, other) in zip(families, pairs, strict=True):
        sock.bind((host, ECHO))
        other.bind((host, ECHO + 1))
        threads.append(threading.Thread(target=serve, args=(sock, other)))
        threads[-1].start()
    yield
    for (host, family), thread, pair in zip(families, threads, pairs, strict=True):
        with lab.enter("outside"), socket.socket(family, socket.SOCK_DGRAM) as end:
            end.sendto(b"end", (host, ECHO))
        thread.join()
        for sock in pair:
            sock.close()


# What a host says by itself: to itself, and to whom it reports its groups (RFC 3810, 5.2.14).
OWN6 = [socket.inet_pton(socket.AF_INET6, address) for address in ("::1", "ff02::16")]


@contextlib.contextmanager
def sniffer(lab: Lab) -> Iterator[set[tuple[str, int]]]:
    """Where the client's host sends IPv4 and IPv6 packets to meanwhile: (address, protocol), without the proxy."""
    with lab.enter("inside"):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.settimeout(0.2)
    found: set[tuple[str, int]] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                frame = sock.recv(65536)
            except TimeoutError:
                continue
            kind = struct.unpack_from("!H", frame, 12)[0]
            if kind == 0x0800 and socket.inet_ntoa(frame[26:30]) == CLIENT4:
                found.add((socket.inet_ntoa(frame[30:34]), frame[23]))
            elif kind == 0x86DD and frame[20] != 58 and frame[38:54] not in OWN6:
                found.add((socket.inet_ntop(socket.AF_INET6, frame[38:54]), frame[20]))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        sock.close()
        found.discard((ROUTER_IN4, 6))


def run(
    lab: Lab,
    *command: str | Path,
    via: str = OURS,
    options: tuple[str, ...] = (),
    user: bool = False,
    check: bool = True,
    engine: str = "auto",
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a program so in the client's host; `user`: as somebody who is not root."""
    who = [*shown(), "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if user else []
    argv = [*who, ALGATE, "exec", "--engine", engine, "--via", via, *options, "--", *command]
    return lab.run("inside", argv, timeout=timeout, check=check)


RAW = r"""
#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int count, char **words) {
    char answer[4096], *text = "GET / HTTP/1.0\r\n\r\n";
    int family = strchr(words[1], ':') ? AF_INET6 : AF_INET;
    struct sockaddr_in to4 = {.sin_family = AF_INET, .sin_port = htons(8080)};
    struct sockaddr_in6 to6 = {.sin6_family = AF_INET6, .sin6_port = htons(8080)};
    inet_pton(AF_INET, words[1], &to4.sin_addr);
    inet_pton(AF_INET6, words[1], &to6.sin6_addr);
    void *to = family == AF_INET ? (void *)&to4 : &to6;
    int sock = syscall(SYS_socket, family, SOCK_STREAM, 0);
    if (syscall(SYS_connect, sock, to, family == AF_INET ? sizeof to4 : sizeof to6)) return 1;
    syscall(SYS_write, sock, text, strlen(text));
    for (long got; (got = syscall(SYS_read, sock, answer, sizeof answer)) > 0;) syscall(SYS_write, 1, answer, got);
    return 0;
}
"""


def static_program(lab: Lab) -> Path:
    """A static program that makes its system calls itself: it gets a page from an address."""
    source, program = lab.tmp / "raw.c", lab.tmp / "raw"
    source.write_text(RAW)
    subprocess.run(["gcc", "-static", "-O1", "-o", program, source], check=True)
    return program
