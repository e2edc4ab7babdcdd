"""Real FTP clients in the lab, driven as a person would: list, get, put, in active or passive mode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.lab import SERVER4, SERVER6, Lab
from tests.lab.servers import FtpServer

TIMEOUT = 60


@dataclass(frozen=True)
class Job:
    """One session: what to fetch, what to store, how. `extra` are further arguments for curl; `prefix` is a command
    that runs the client, as `algate exec` does."""

    lab: Lab
    server: FtpServer
    version: int
    active: bool
    extra: tuple[str, ...] = ()
    prefix: tuple[str | Path, ...] = ()

    @property
    def host(self) -> str:
        return SERVER4 if self.version == 4 else SERVER6

    def run(self, argv: Sequence[str | Path], stdin: str | None = None, env: Mapping[str, str] | None = None) -> str:
        """What the client's program prints."""
        return self.lab.run("inside", [*self.prefix, *argv], TIMEOUT, stdin=stdin, env=env).stdout


Client = Callable[[Job, str, Path, Path, str], str]
"""(job, remote file, where to store it, local file, where to put it) -> the listing that the client printed."""


def curl(job: Job, remote: str, fetched: Path, local: Path, stored: str) -> str:
    mode = ("--ftp-port", "-") if job.active else ()
    base = ["curl", "-sS", *mode, *job.extra]
    listing = job.run([*base, job.server.url("pub/", job.version)])
    job.run([*base, "-o", fetched, job.server.url(remote, job.version)])
    job.run([*base, "-T", local, job.server.url(stored, job.version)])
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
    return job.run(["lftp", "-c", "; ".join(script)])


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
    return job.run(argv, stdin="\n".join(script) + "\n")


def ncftp(job: Job, remote: str, fetched: Path, local: Path, stored: str) -> str:
    """ncftp's three programs. They speak no IPv6, and look up the names of addresses, for which nobody is there."""
    env = {"RES_OPTIONS": "timeout:1 attempts:1"}
    base = ["-u", job.server.user, "-p", job.server.password, "-E" if job.active else "-F", "-t", "10"]
    listing = job.run(["ncftpls", *base, "-l", f"ftp://{job.host}/pub/"], env=env)
    copy = fetched.parent / Path(remote).name
    job.run(["ncftpget", "-V", *base, job.host, fetched.parent, remote], env=env)
    copy.rename(fetched)
    there = Path(stored)
    renamed = local.parent / there.name
    renamed.symlink_to(local)
    try:
        job.run(["ncftpput", "-V", *base, job.host, str(there.parent), renamed], env=env)
    finally:
        renamed.unlink()
    return listing


def wget(job: Job, remote: str, fetched: Path, local: Path, stored: str) -> str:
    """Fetches only: nothing is stored. Its listing is the directory as a page."""
    host = job.host if job.version == 4 else f"[{job.host}]"
    base = ["wget", "-q", "-T", "10", "-t", "1", "--user", job.server.user, "--password", job.server.password]
    base += ["--no-passive-ftp"] if job.active else []
    job.run([*base, "-O", fetched, f"ftp://{host}/{remote}"])
    return job.run([*base, "-O", "-", f"ftp://{host}/pub/"])


_FTPLIB = """
import ftplib, sys
host, user, password, active, remote, fetched, local, stored = sys.argv[1:]
with ftplib.FTP(host, user, password, timeout=10) as ftp:
    ftp.set_pasv(active == "0")
    ftp.retrlines("LIST pub")
    with open(fetched, "wb") as file:
        ftp.retrbinary("RETR " + remote, file.write)
    with open(local, "rb") as file:
        ftp.storbinary("STOR " + stored, file)
"""


def ftplib(job: Job, remote: str, fetched: Path, local: Path, stored: str) -> str:
    """Python's own client."""
    argv = [sys.executable, "-c", _FTPLIB, job.host, job.server.user, job.server.password, str(int(job.active))]
    return job.run([*argv, remote, str(fetched), str(local), stored])


CLIENTS: dict[str, Client] = {"curl": curl, "lftp": lftp, "tnftp": tnftp}
ALL_CLIENTS: dict[str, Client] = {**CLIENTS, "ncftp": ncftp, "ftplib": ftplib, "wget": wget}
