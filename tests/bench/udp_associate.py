"""Datagrams a second through one UDP association: `python -m tests.bench.udp_associate [RATE] [SECONDS]`, as root.

A client in a namespace sends at RATE to a server in another one, which counts what arrives.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

from tests.lab.lab import CLIENT4, ROUTER_IN4, SERVER4, Lab
from tests.net.socks_wire import ask5, datagram
from tests.net.udp_client import UDP, udp

PAYLOAD = bytes(172)  # as a packet of G.711 speech


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def run(rate: int, seconds: float) -> None:
    with Lab() as lab:
        gateway = lab.start_gateway(lab.write_config(process={"workers": 1}))
        [pid] = [row["pid"] for row in gateway.admin("status") if str(row["process"]).startswith("worker")]
        control = lab.connect("inside", ROUTER_IN4, 1080)
        client, server = udp(lab, "inside", CLIENT4), udp(lab, "outside", SERVER4, 5300)
        server.setsockopt(socket.SOL_SOCKET, 33, 1 << 23)  # SO_RCVBUFFORCE: what is lost here is not the gateway's
        _, host, port = ask5(control, "0.0.0.0", 0, UDP)
        counted = {"server": 0}

        def count() -> None:
            buffer = bytearray(2048)
            server.settimeout(1)
            try:
                while True:
                    server.recv_into(buffer)
                    counted["server"] += 1
            except TimeoutError:
                pass

        wire, total = datagram(SERVER4, 5300, PAYLOAD), int(rate * seconds)
        client.sendto(wire, (host, port))
        server.recv(2048)
        receiver = threading.Thread(target=count)
        receiver.start()
        client.connect((host, port))
        before, began = cpu_seconds(pid), time.monotonic()
        for number in range(total):
            client.send(wire)
            if not number % 20:
                ahead = began + number / rate - time.monotonic()
                if ahead > 0:
                    time.sleep(ahead)
        took = time.monotonic() - began
        receiver.join()
        cpu = cpu_seconds(pid) - before
        print(
            f"{total / took:,.0f} datagrams/s for {took:.1f} s, lost {total - counted['server']} of {total}; "
            f"worker {100 * cpu / took:.0f} % of a core, {1e6 * cpu / max(counted['server'], 1):.1f} us each"
        )
        control.close()
        gateway.stop()


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 20000, float(sys.argv[2]) if len(sys.argv) > 2 else 10)
