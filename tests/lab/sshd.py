"""OpenSSH's server from Debian's package, and a client's command that it lets in."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.lab import Lab, Role
from tests.lab.peers import unpacked
from tests.lab.servers import _listens


def sshd(
    lab: Lab, port: int, hosts: Sequence[str], user: int = 0, role: Role = "outside"
) -> tuple[subprocess.Popen[bytes], list[str | Path]]:
    """Start it. Returns its process, and the command of a client up to its ProxyCommand, for root and for `user`.

    `hosts`: the names and addresses at which the client knows its key.
    """
    home = lab.tmp / "ssh"
    home.mkdir(mode=0o755)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name], check=True)
    key = home / "user"
    if user:
        key = home / f"user-{user}"
        shutil.copy(home / "user", key)
        os.chown(key, user, user)
        key.chmod(0o600)
    (home / "authorized").write_text((home / "user.pub").read_text())
    names = ",".join(f"[{host}]:{port}" for host in hosts)
    (home / "known").write_text(f"{names} {(home / 'host.pub').read_text()}")
    (home / "sshd_config").write_text(
        f"""
Port {port}
HostKey {home}/host
AuthorizedKeysFile {home}/authorized
StrictModes no
PidFile none
AuthenticationMethods publickey
"""
    )
    program = unpacked("openssh-server", "usr/sbin/sshd")
    parts = program.parents[1] / "lib/openssh"
    with (home / "sshd_config").open("a") as config:  # what it starts itself, from OpenSSH 9.8 and 10.0 on
        for part in ("sshd-session", "sshd-auth"):
            if (parts / part).exists():
                config.write(f"Sshd{part[5:].title()}Path {parts / part}\n")
    # The user that it drops its privileges to and its empty directory, which an installed one would have.
    etc = Path("/etc/netns", lab.ns(role))
    etc.mkdir(parents=True, exist_ok=True)
    (etc / "passwd").write_text(Path("/etc/passwd").read_text() + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
    start = f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec {program} -D -e -f {home}/sshd_config"
    server = lab.popen(role, ["sh", "-c", start])
    lab.wait_for(lambda: _listens(server, port), 10, "sshd to listen")
    files: list[str | Path] = ["-o", f"UserKnownHostsFile={home}/known", "-o", "GlobalKnownHostsFile=none", "-i", key]
    options: list[str | Path] = ["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
    return server, ["ssh", *options, *files, "-p", str(port)]
