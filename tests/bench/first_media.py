"""First packets of media that are lost: `sudo .venv/bin/python -m tests.bench.first_media [--calls 1000]`.

Calls through the gateway over UDP and TCP, answered by 183 or 200. "delivered": the server's first packet of media
leaves when the phone has read the answer; "sent": right behind the answer, which is still on its way. Prints Markdown.
"""

from __future__ import annotations

import argparse

from tests.lab.first_media import Transport, When, first_media
from tests.lab.lab import Lab

TRANSPORTS: tuple[Transport, ...] = ("udp", "tcp")
TIMES: tuple[When, ...] = ("delivered", "sent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000, help="of each row (1000)")
    calls = parser.parse_args().calls
    print(f"| over | answer | first packet leaves when it is | lost of {calls:,} |\n| --- | --- | --- | --- |")
    with Lab() as lab:
        running = lab.start_gateway(lab.write_config(pinhole={"rate": 10000}, alg={"sip": {"rate": 100_000}}))
        try:
            for transport in TRANSPORTS:
                for status in (183, 200):
                    for when in TIMES:
                        lost = first_media(lab, transport, status, calls, when).lost
                        print(f"| {transport.upper()} | {status} | {when} | {lost} |", flush=True)
        finally:
            running.stop()


if __name__ == "__main__":
    main()
