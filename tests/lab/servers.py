"""Real servers in the namespace `outside`, from Debian packages that `make setup` unpacked into .venv/peers."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.peers import PEERS, installed, unpacked

if TYPE_CHECKING:
    from tests.lab.lab import Lab, Role

# Whose files they are: a user that every Debian has, with a home directory that exists (vsftpd insists).
_OWNER = "bin"
_USER, _PASSWORD = "ann", "secret"
# crypt(3) of _PASSWORD
_HASH = "$6$algate$bcNJnnX1HntsW.HqTXHj0flCh.Uy2Mh64GGe2Kx1d.97RjD2vkMqF12jvcpsRlX8JLHRIa0EFjAZBG06Nxft20"


@dataclass(frozen=True, slots=True)
class FtpServer:
    """A server on port 21 of both addresses of `outside`.

    `root` is what a client sees as its home: files in `pub/` can be fetched, anything can be stored in `upload/`.
    """

    lab: Lab
    name: str
    root: Path
    user: str
    password: str
    process: subprocess.Popen[bytes]
    log: Path

    def url(self, path: str = "", version: int = 4, host: str | None = None) -> str:
        """A URL with user and password; `path` relative to `root`."""
        from tests.lab.lab import SERVER4, SERVER6

        host = host or (SERVER4 if version == 4 else f"[{SERVER6}]")
        return f"ftp://{self.user}:{self.password}@{host}/{path}"

    def put(self, path: str, data: bytes) -> Path:
        """Make a file below `root`."""
        file = self.root / path
        file.write_bytes(data)
        file.chmod(0o644)
        return file

    def stop(self) -> None:
        self.lab.stop(self.process)


def vsftpd(lab: Lab, options: Mapping[str, str], role: Role = "outside") -> FtpServer:
    root, home, log = _tree(lab, "vsftpd")
    settings = {
        "listen": "NO",
        "listen_ipv6": "YES",  # IPv4 too
        "background": "NO",
        "anonymous_enable": "YES",
        "no_anon_password": "YES",
        "local_enable": "NO",
        "write_enable": "YES",
        "anon_upload_enable": "YES",
        "anon_mkdir_write_enable": "YES",
        "anon_other_write_enable": "YES",
        "anon_world_readable_only": "NO",
        "anon_umask": "022",
        "anon_root": str(root),
        "ftp_username": _OWNER,
        "nopriv_user": "nobody",
        "secure_chroot_dir": str(home / "empty"),
        "connect_from_port_20": "YES",
        "xferlog_enable": "YES",
        "log_ftp_protocol": "YES",
        "vsftpd_log_file": str(log),
        # Its own sandboxes: the system calls of newer kernels, and namespaces in which the lab would not see it.
        "seccomp_sandbox": "NO",
        "isolate": "NO",
        "isolate_network": "NO",
        **options,
    }
    (home / "empty").mkdir()
    file = home / "vsftpd.conf"
    file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    process = lab.popen(role, [unpacked("vsftpd", "usr/sbin/vsftpd"), file], log=log)
    return _listening(FtpServer(lab, "vsftpd", root, "anonymous", "guest", process, log))


def pure_ftpd(lab: Lab, arguments: Sequence[str]) -> FtpServer:
    root, home, log = _tree(lab, "pure-ftpd")
    passwd, database = home / "passwd", home / "pureftpd.pdb"
    owner = pwd.getpwnam(_OWNER)
    # user:password:uid:gid:gecos:home, then limits
    passwd.write_text(f"{_USER}:{_HASH}:{owner.pw_uid}:{owner.pw_gid}::{root}/./::::::::::::\n")
    lab.run("outside", [unpacked("pure-ftpd", "usr/bin/pure-pw"), "mkdb", database, "-f", passwd])
    argv: list[str | Path] = [
        unpacked("pure-ftpd", "usr/sbin/pure-ftpd"),
        "-l",
        f"puredb:{database}",
        "-E",
        "-A",
        "-H",
        "-u",
        "1",
        "-S",
        "21",
    ]
    argv += ["-g", home / "pid", "-c", "100", "-C", "100", *arguments]
    process = lab.popen("outside", argv, log=log)
    return _listening(FtpServer(lab, "pure-ftpd", root, _USER, _PASSWORD, process, log))


def proftpd(lab: Lab, directives: Sequence[str]) -> FtpServer:
    from tests.lab.lab import SERVER4

    root, home, log = _tree(lab, "proftpd")
    owner = pwd.getpwnam(_OWNER)
    users = home / "users"
    users.write_text(f"{_USER}:{_HASH}:{owner.pw_uid}:{owner.pw_gid}::{root}:/bin/sh\n")
    users.chmod(0o600)
    modules = PEERS / "usr/lib/proftpd"  # some of what 1.3.8 has in itself in one release is loaded in another
    loaded = [
        f"LoadModule {name}.c" for name in ("mod_ls", "mod_xfer", "mod_delay") if (modules / f"{name}.so").exists()
    ]
    lines = [
        f"ModulePath {modules}", *loaded,
        "ServerType standalone", "DefaultServer on", f"DefaultAddress {SERVER4}", "Port 21", "UseIPv6 on",
        f"User {_OWNER}", "Group bin",
        "DefaultRoot ~", "RequireValidShell off", "AuthOrder mod_auth_file.c", f"AuthUserFile {users}",
        f"PidFile {home}/pid", f"ScoreboardFile {home}/scoreboard", "WtmpLog off", f"SystemLog {log}",
        "TransferLog none",
        "UseReverseDNS off", "Umask 022", "AllowOverwrite on", "TimeoutLinger 1", *directives,
    ]  # fmt: skip
    # DefaultAddress, as the name of this machine may have no address. It listens on all.
    file = home / "proftpd.conf"
    file.write_text("\n".join(lines) + "\n")
    process = lab.popen("outside", [unpacked("proftpd-core", "usr/sbin/proftpd"), "-n", "-c", file], log=log)
    return _listening(FtpServer(lab, "proftpd", root, _USER, _PASSWORD, process, log))


def pyftpdlib(lab: Lab, role: Role = "outside") -> FtpServer:
    """pyftpdlib, as its own command line starts it, with one user who may do everything."""
    root, _, log = _tree(lab, "pyftpdlib")
    (root / "upload").chmod(0o777)
    argv: list[str | Path] = [sys.executable, "-m", "pyftpdlib", "-i", "::", "-p", "21", "-w", "-d", root]
    process = lab.popen(role, [*argv, "-u", _USER, "-P", _PASSWORD], log=log)
    return _listening(FtpServer(lab, "pyftpdlib", root, _USER, _PASSWORD, process, log))


_OF_RFC_959 = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer
user, password, root = sys.argv[1:]
FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_user(user, password, root, perm="elradfmwMT")
FTPHandler.proto_cmds = {word: what for word, what in FTPHandler.proto_cmds.items() if word not in ("EPSV", "EPRT")}
FTPServer(("0.0.0.0", 21), FTPHandler).serve_forever()
"""


def old(lab: Lab) -> FtpServer:
    """A server of IPv4 that knows neither EPSV nor EPRT."""
    root, _, log = _tree(lab, "old")
    (root / "upload").chmod(0o777)
    process = lab.popen("outside", [sys.executable, "-c", _OF_RFC_959, _USER, _PASSWORD, root], log=log)
    return _listening(FtpServer(lab, "old", root, _USER, _PASSWORD, process, log))


def tayga(lab: Lab, prefix: str) -> None:
    """A NAT64 on the router: `prefix` (of 96 bits) leads to IPv4. Its traffic is masqueraded, and let out."""
    config = lab.tmp / "tayga.conf"
    pool = "192.168.255.0/24"
    config.write_text(
        f"tun-device nat64\nipv4-addr 192.168.255.1\nprefix {prefix}\ndynamic-pool {pool}\ndata-dir {lab.tmp}\n"
    )
    program = unpacked("tayga", "usr/sbin/tayga")
    lab.run("router", [program, "-c", config, "--mktun"])
    for command in ("link set nat64 up", f"route add {pool} dev nat64", f"route add {prefix} dev nat64"):
        lab.run("router", ["ip", *command.split()])
    lab.run("router", ["iptables", "-A", "FORWARD", "-i", "nat64", "-o", "eth0", "-j", "ACCEPT"])
    lab.popen("router", [program, "-c", config, "--nodetach"])


def dns(lab: Lab, records: Mapping[str, Sequence[str]]) -> None:
    from tests.lab.lab import SERVER4

    argv: list[str | Path] = [installed("dnsmasq-base", "/usr/sbin/dnsmasq")]
    argv += ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
    argv += ["--user=nobody", "--pid-file=", "--local=/#/", f"--listen-address={SERVER4}", "--bind-interfaces"]
    argv += [f"--host-record={name},{','.join(addresses)}" for name, addresses in records.items()]
    process = lab.popen("outside", argv, log=lab.logs / "dns.log")
    lab.wait_for(lambda: _listens(process, 53), 10, "the name server" + lab.tail_of_logs())
    # `ip netns exec` lays the files in here over those of /etc
    directory = Path("/etc/netns", lab.ns("router"))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "resolv.conf").write_text(f"nameserver {SERVER4}\n")


def tftp(lab: Lab, root: Path, host: str) -> subprocess.Popen[bytes]:
    """dnsmasq outside, as a TFTP server for the files in `root`."""
    argv: list[str | Path] = [installed("dnsmasq-base", "/usr/sbin/dnsmasq"), "--keep-in-foreground", "--port=0"]
    argv += ["--conf-file=/dev/null", "--user=nobody", "--pid-file=", "--enable-tftp", f"--tftp-root={root}"]
    process = lab.popen("outside", [*argv, f"--listen-address={host}", "--bind-interfaces"])
    return has_tftp(lab, process)


def has_tftp(lab: Lab, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """The server, once it has UDP port 69."""

    def bound() -> bool:
        assert process.poll() is None, f"the TFTP server ended{lab.tail_of_logs()}"
        tables = (Path(f"/proc/{process.pid}/net/{name}").read_text() for name in ("udp", "udp6"))
        return any(line.split()[1].endswith(":0045") for table in tables for line in table.splitlines()[1:])

    lab.wait_for(bound, 10, "a TFTP server")
    return process


def gst_rtsp(lab: Lab, host: str, port: int, role: Role = "outside", *password: str) -> subprocess.Popen[bytes]:
    """GStreamer's RTSP server, with the streams of rtsp_server.py, perhaps with a password. Skips the test where it is
    not installed."""
    python = installed("python3-gi", "/usr/bin/python3")
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip("gir1.2-gst-rtsp-server-1.0 is not installed: make setup brings it, where this release has it")
    log = lab.logs / f"rtsp{len(list(lab.logs.glob('rtsp*')))}.log"
    argv: list[str | Path] = [python, Path(__file__).with_name("rtsp_server.py"), host, str(port), *password]
    process = lab.popen(role, argv, log=log)
    # The namespace's table of sockets does not say whose a port is: another one may listen there at another address.
    lab.wait_for(lambda: "listening" in log.read_text(), 20, "the RTSP server" + lab.tail_of_logs())
    return process


def _tree(lab: Lab, name: str) -> tuple[Path, Path, Path]:
    """What clients see, where the server keeps its own files, and its log."""
    number = len(list(lab.tmp.glob("server*"))) + 1
    home = lab.tmp / f"server{number}"
    root = home / "root"
    (root / "pub").mkdir(parents=True)
    upload = root / "upload"
    upload.mkdir()
    owner = pwd.getpwnam(_OWNER)
    os.chown(upload, owner.pw_uid, owner.pw_gid)
    for path in (home, root, root / "pub", upload):
        path.chmod(0o755)
    return root, home, lab.logs / f"{name}-{number}.log"


def _listening(server: FtpServer) -> FtpServer:
    """The server, once it listens on port 21."""

    def condition() -> bool:
        assert server.process.poll() is None, f"{server.name} ended:\n{server.log.read_text()}"
        return _listens(server.process, 21)

    server.lab.wait_for(condition, 10, f"{server.name} to listen on port 21")
    return server


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether somebody listens (TCP) on the port in the namespace of the process."""
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{process.pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:  # it ended
            return False
        for line in lines:
            _, local, _, state, *_ = line.split()
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                return True
    return False
