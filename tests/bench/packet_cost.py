"""What a forwarded datagram costs the router: `sudo .venv/bin/python -m tests.bench.packet_cost [--rounds N]`.

One processor sends datagrams of 172 bytes, forwards them through the router, and drops them in front of the client; so
nobody waits for anybody, and the sender's CPU time is that of the whole way. Two labs in turns, one without the
gateway: each round gives a ratio, and the table shows their median, which is steady where rates are not. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.protocols import MEDIA, Rig, gateway, media_pinhole
from tests.lab.lab import CLIENT4, ROUTER_OUT4, SERVER4, Lab
from tests.lab.udp import Udp

SERVER_PORT, BURST = 7000, 3000
_SENDER = r"""
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

int main(int argc, char **argv)
{
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[4]))};
    struct timespec began, ended;
    char data[172] = {0};
    int count = atoi(argv[5]), sock = socket(AF_INET, SOCK_DGRAM, 0);
    inet_pton(AF_INET, argv[1], &from.sin_addr);
    inet_pton(AF_INET, argv[3], &to.sin_addr);
    if (bind(sock, (void *)&from, sizeof from) || connect(sock, (void *)&to, sizeof to))
        return perror("bind or connect"), 1;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &began);
    for (int i = 0; i < count; i++)
        send(sock, data, sizeof data, 0);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ended);
    printf("%f\n", ((ended.tv_sec - began.tv_sec) * 1e9 + (ended.tv_nsec - began.tv_nsec)) / count);
}
"""


def answered(lab: Lab) -> int:
    """Have the client and the server talk by no protocol that is read; the router's port for that."""
    with Udp(lab, "inside", CLIENT4, MEDIA) as client, Udp(lab, "outside", SERVER4, SERVER_PORT) as server:
        client.send(b"hello", (SERVER4, SERVER_PORT))
        _, (_, port) = server.receive()
        server.send(b"hello", (ROUTER_OUT4, port))
        client.receive()
    return port


@contextlib.contextmanager
def dropped(lab: Lab) -> Iterator[None]:
    """Drop what arrives at the client's port, before connection tracking."""
    lab.run("inside", ["nft", "add table inet drops"])
    lab.run("inside", ["nft", "add chain inet drops early { type filter hook prerouting priority -500; }"])
    lab.run("inside", ["nft", f"add rule inet drops early udp dport {MEDIA} counter drop"])
    try:
        yield
    finally:
        lab.run("inside", ["nft", "delete table inet drops"])


def nanoseconds(lab: Lab, sender: Path, port: int) -> float:
    """CPU time of a datagram's whole way."""
    words = ["taskset", "-c", "0", str(sender), SERVER4, str(SERVER_PORT), ROUTER_OUT4, str(port), str(BURST)]
    return float(lab.run("outside", words).stdout)


def row(title: str, plain: Lab, ours: Lab, sender: Path, ports: tuple[int, int], rounds: int) -> str:
    with dropped(plain), dropped(ours):
        found = [(nanoseconds(plain, sender, ports[0]), nanoseconds(ours, sender, ports[1])) for _ in range(rounds)]
    least = [min(values) / 1000 for values in zip(*found, strict=True)]
    ratio = statistics.median(without / with_it for without, with_it in found)
    return f"| {title} | {least[0]:.2f} µs | {least[1]:.2f} µs | {ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Lab() as plain, Lab() as ours, gateway(ours):
        Path(directory).chmod(0o755)
        sender = Path(directory, "sender")
        subprocess.run(["gcc", "-O2", "-x", "c", "-o", sender, "-"], input=_SENDER, text=True, check=True)
        print("| a datagram's way, least of all rounds | plain NAT | algate | rate, of plain NAT's |")
        print("| --- | ---: | ---: | ---: |")
        without = answered(plain)
        print(row("of no module", plain, ours, sender, (without, answered(ours)), options.rounds), flush=True)
        ours.run("router", ["conntrack", "-F"])
        with media_pinhole(Rig(ours, sender, 0.0)) as port:
            with Udp(ours, "outside", SERVER4, SERVER_PORT) as server, Udp(ours, "inside", CLIENT4, MEDIA) as client:
                server.send(b"media", (ROUTER_OUT4, port))
                client.receive()
            print(row("through a pinhole for media", plain, ours, sender, (without, port), options.rounds), flush=True)


if __name__ == "__main__":
    main()
