"""`python -m tests.conformance.ftp`: FTP with the gateway, the kernel helper and neither; real clients and servers.

Needs root. Plays everything in the lab's namespaces, on a router that forwards nothing but TCP to port 21, and writes
the tables into docs/protocols/ftp.md, between the lines that mark them. With `--check` it writes nothing. Exit code 1
where the gateway failed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from tests.conformance.variants import SAFE, WORKS, Missing, Session, Variant
from tests.conformance.ways import WAYS, Way
from tests.lab import servers
from tests.lab.lab import Lab, LabError
from tests.lab.servers import FtpServer
from tests.net.ftp_clients import ALL_CLIENTS, Client, Job

PAGE = Path(__file__).parents[2] / "docs" / "protocols" / "ftp.md"
BEGIN, END = "<!-- tables: made by python -m tests.conformance.ftp -->", "<!-- end of tables -->"
SERVERS: dict[str, Callable[[Lab], FtpServer]] = {
    "vsftpd": Lab.vsftpd,
    "pure-ftpd": Lab.pure_ftpd,
    "proftpd": Lab.proftpd,
    "pyftpdlib": servers.pyftpdlib,
}
SIZE = 100_000
NO_IPV6 = ("ncftp",)  # clients
NO_STORE = ("wget",)


def play(lab: Lab, way: Way, variant: Variant) -> str:
    """One variant by one way: "" if it is as it should be, else what was wrong."""
    try:
        connect = partial(way.connect, lab)
        with Session(lab, connect, variant.version, variant.login, variant.greeting) as session:
            variant.play(session)
    except (Missing, OSError, LabError) as error:
        return str(error) or type(error).__name__
    return ""


def transfer(lab: Lab, server: FtpServer, name: str, client: Client, active: bool, version: int) -> str:
    """List, fetch and store by a real client; "" or what was wrong."""
    local, fetched = lab.tmp / "local", lab.tmp / "fetched"
    local.write_bytes(os.urandom(SIZE))
    server.put("pub/file", local.read_bytes())
    stored = server.root / "upload" / "stored"
    try:
        listing = client(Job(lab, server, version, active), "pub/file", fetched, local, "upload/stored")
        if "file" not in listing:
            return "the listing"
        if fetched.read_bytes() != local.read_bytes():
            return "what was fetched"
        if name not in NO_STORE and stored.read_bytes() != local.read_bytes():
            return "what was stored"
    except (OSError, LabError) as error:
        return str(error).splitlines()[0]
    finally:
        for path in (fetched, stored):
            path.unlink(missing_ok=True)
    return ""


def variants(lab: Lab, report: Callable[[str], None], ways: Sequence[Way] = WAYS) -> tuple[list[str], int]:
    """The table of variants, and how many of them the gateway failed."""
    results: dict[Variant, list[str]] = {variant: [] for variant in (*WORKS, *SAFE)}
    failed = 0
    for way in ways:
        with way.prepare(lab):
            for variant in results:
                wrong = play(lab, way, variant)
                results[variant].append("no" if wrong else "yes")
                if wrong and way.name.startswith("algate"):
                    failed += 1
                    report(f"FAILED {way.name}: {variant.what}: {wrong}")
    names = [way.name for way in ways]
    table = ["Does it work?", "", *_table(["variant", *names], ([v.what, *results[v]] for v in WORKS))]
    table += ["", "Does it stay closed?", "", *_table(["attack", *names], ([v.what, *results[v]] for v in SAFE))]
    return table, failed


def pairs(lab: Lab, report: Callable[[str], None]) -> tuple[list[str], int]:
    """The table of real clients and servers, through the transparent front, and how many pairs failed."""
    cells: dict[tuple[str, str], list[str]] = {}
    failed = 0
    with WAYS[2].prepare(lab):
        for server_name, start in SERVERS.items():
            server = start(lab)
            for name, client in ALL_CLIENTS.items():
                for version in (4, 6):
                    for active in (True, False):
                        if version == 6 and name in NO_IPV6:
                            cells.setdefault((name, server_name), []).append("-")
                            continue
                        wrong = transfer(lab, server, name, client, active, version)
                        cells.setdefault((name, server_name), []).append("no" if wrong else "yes")
                        if wrong:
                            failed += 1
                            how = f"{'active' if active else 'passive'}, IPv{version}"
                            report(f"FAILED {name} with {server_name}, {how}: {wrong}")
            server.stop()
    head = ["client, to", *SERVERS]
    rows = ([name, *(" ".join(cells[name, server]) for server in SERVERS)] for name in ALL_CLIENTS)
    return ["Each cell: active IPv4, passive IPv4, active IPv6, passive IPv6.", "", *_table(head, rows)], failed


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main(arguments: list[str]) -> int:
    """Play all; the exit code."""
    began = time.monotonic()
    with Lab(strict=True) as lab:
        first, failed = variants(lab, print)
        second, failed_pairs = pairs(lab, print)
    text = "\n".join([*first, "", *second])
    print(text)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if "--check" not in arguments:
        page = PAGE.read_text()
        before, after = page[: page.index(BEGIN)], page[page.index(END) :]
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{after}")
    return 1 if failed or failed_pairs else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
