"""Real FTP clients in the lab, driven as a person would: list, get, put, in active or passive mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.lab import SERVER4, SERVER6, Lab
from tests.lab.servers import FtpServer

TIMEOUT = 60


@dataclass(frozen=True)
class Job:
    """One session: what to fetch, what to store, how. `extra` are further arguments for curl."""

    lab: Lab
    server: FtpServer
    version: int
    active: bool
    extra: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        return SERVER4 if self.version == 4 else SERVER6


Client = Callable[[Job, str, Path, Path, str], str]
"""(job, remote file, where to store it, local file, where to put it) -> the listing that the client printed."""


def curl(job: Job, remote: str, fetched: Path, local: Path, stored: str) -> str:
    mode = ("--ftp-port", "-") if job.active else ()
    base = ["curl", "-sS", *mode, *job.extra]
    listing = job.lab.run("inside", [*base, job.server.url("pub/", job.version)], TIMEOUT).stdout
    job.lab.run("inside", [*base, "-o", fetched, job.server.url(remote, job.version)], TIMEOUT)
    job.lab.run("inside", [*base, "-T", local, job.server.url(stored, job.version)], TIMEOUT)
    return listing


def lftp(job: Job, remote: str, fetched: Path, local: Path, stored: str) -> str:
    host = job.host if job.version == 4 else f"[{job.host}]"
    script = [
        f"set ftp:passive-mode {'no' if job.active else 'yes'}; set net:max-retries 1; set net:timeout 10",
        "set cmd:fail-exit yes; set ftp:ssl-allow no",
        f"open -u {job.server.user},{job.server.password} ftp://{host}",
        "ls pub",
        f"get {remote} -o {fetched}",
        f"put {local} -o {stored}",
        "bye",
    ]
    return job.lab.run("inside", ["lftp", "-c", "; ".join(script)], TIMEOUT).stdout


def tnftp(job: Job, remote: str, fetched: Path, local: Path, stored: str) -> str:
    """The classic `ftp`. Its exit code says nothing: the caller looks at the files."""
    script = [
        f"user {job.server.user} {job.server.password}",
        "binary",
        "ls pub",
        f"get {remote} {fetched}",
        f"put {local} {stored}",
        "bye",
    ]
    argv = ["tnftp", "-n", "-v", "-A" if job.active else "-p", job.host]
    return job.lab.run("inside", argv, TIMEOUT, stdin="\n".join(script) + "\n").stdout


CLIENTS: dict[str, Client] = {"curl": curl, "lftp": lftp, "tnftp": tnftp}
