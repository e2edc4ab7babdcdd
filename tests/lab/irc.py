"""Real IRC: ngircd and InspIRCd outside, irssi as a user types it, and WeeChat without a terminal."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.peers import PEERS, installed, unpacked

if TYPE_CHECKING:
    from tests.lab.lab import Lab, Role

IRC = 6667


def ngircd(lab: Lab, host: str) -> subprocess.Popen[bytes]:
    """A server outside, at `IRC`."""
    config = lab.tmp / f"ngircd{len(list(lab.tmp.glob('ngircd*')))}.conf"
    config.write_text(
        f"[Global]\nName = irc.example.test\nInfo = test\nListen = {host}\nPorts = {IRC}\n"
        "ServerUID = nobody\nServerGID = nogroup\nMotdPhrase = hello\n"
        "[Limits]\nMaxConnectionsIP = 0\nMaxPenaltyTime = 0\n"
        "[Options]\nIdent = no\nDNS = no\nPAM = no\n"
    )
    process = lab.popen("outside", [unpacked("ngircd", "usr/sbin/ngircd"), "-n", "-f", config])
    return _serving(lab, host, process)


def inspircd(lab: Lab, host: str) -> subprocess.Popen[bytes]:
    """InspIRCd outside, at `IRC`."""
    folder = lab.tmp / f"inspircd{len(list(lab.tmp.glob('inspircd*')))}"
    folder.mkdir()
    (folder / "motd").write_text("hello\n")
    config = folder / "inspircd.conf"
    config.write_text(
        '<server name="irc.example.test" description="test" network="Test" id="001">\n'
        '<admin name="a" nick="a" email="a@example.test">\n'
        f'<bind address="{host}" port="{IRC}" type="clients">\n'
        '<connect name="all" allow="*" resolvehostnames="no" fakelag="no" localmax="100" globalmax="100">\n'
        f'<path moduledir="{PEERS}/usr/lib/inspircd/modules" datadir="{folder}" logdir="{folder}"\n'
        f' runtimedir="{folder}">\n'
        f'<files motd="{folder}/motd">\n<dns server="127.0.0.1" timeout="1">\n'
        f'<log method="file" type="* -USERINPUT -USEROUTPUT" level="default" target="{folder}/log">\n'
    )
    program = unpacked("inspircd", "usr/sbin/inspircd")
    argv: list[str | Path] = [program, "--nofork", "--nopid", "--runasroot", "--config", config]
    return _serving(lab, host, lab.popen("outside", argv))


def _serving(lab: Lab, host: str, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """The server, once it listens."""

    def serves() -> bool:
        assert process.poll() is None, lab.tail_of_logs()
        try:
            lab.connect("outside", host, IRC, timeout=1).close()
        except OSError:
            return False
        return True

    lab.wait_for(serves, 10, "an IRC server")
    return process


class Irssi:
    """irssi in a terminal, connected to `host` as `nick`. It takes files that are offered, and goes on with halves."""

    def __init__(self, lab: Lab, role: Role, host: str, nick: str) -> None:
        self.lab, self.nick = lab, nick
        self.folder = lab.tmp / f"irssi-{nick}-{len(list(lab.tmp.glob('irssi-*')))}"
        self.downloads = self.folder / "downloads"
        self.downloads.mkdir(parents=True)
        settings = {
            "dcc_autoget": "on",
            "dcc_autoaccept_lowports": "on",  # port 0 of passive offers is one
            "dcc_autoresume": "on",
            "dcc_autorename": "off",
            "dcc_autochat_masks": "*!*@*",
            "dcc_file_create_mode": "644",
            "dcc_download_path": str(self.downloads),
            "resolve_reverse_lookup": "off",
        }
        startup = "".join(f"/set {key} {value}\n" for key, value in settings.items())
        (self.folder / "startup").write_text(startup)
        program = installed("irssi", "/usr/bin/irssi")
        command = f"stty rows 40 cols 200; TERM=vt100 exec {program} --home={self.folder} --nick={nick}"
        self.screen = lab.logs / f"{self.folder.name}.log"
        argv: list[str | Path] = ["script", "-qfc", command, "/dev/null"]
        self._process = lab.popen(role, argv, log=self.screen, stdin=subprocess.PIPE)
        self.says(f"/connect {host} {IRC}")
        self.wait_to_see("hello")

    def __enter__(self) -> Irssi:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.says("/quit")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(3)
        self.lab.stop(self._process)

    def says(self, line: str) -> None:
        """Type a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\r")
        self._process.stdin.flush()

    def wait_to_see(self, text: str) -> None:
        """Until it is on the screen."""
        self.lab.wait_for(lambda: text in self.screen.read_text(errors="replace"), 20, f"irssi to show {text!r}")

    def began(self, name: str, data: bytes) -> None:
        """There is a piece of this file from an earlier attempt."""
        (self.downloads / name).write_bytes(data)

    def has(self, name: str, data: bytes) -> bool:
        """Whether it has fetched this file whole."""
        path = self.downloads / name
        return path.exists() and path.read_bytes() == data

    def takes(self, name: str, data: bytes) -> bool:
        """The same of a file whose name has blanks: irssi keeps it with underscores."""
        return self.has(name, data) or self.has(name.replace(" ", "_"), data)


class Weechat:
    """WeeChat without a terminal, connected to `host` as `nick`, perhaps through a SOCKS server at the host `proxy`. It
    takes files that are offered, and goes on with halves."""

    def __init__(self, lab: Lab, role: Role, host: str, nick: str, proxy: str = "") -> None:
        self.lab = lab
        self.folder = lab.tmp / f"weechat-{nick}-{len(list(lab.tmp.glob('weechat-*')))}"
        self.downloads = self.folder / "downloads"
        self.downloads.mkdir(parents=True)
        self._fifo = self.folder / "fifo"
        way = "lab.proxy = gateway\n" if proxy else ""
        known = f'gateway.type = socks5\ngateway.address = "{proxy}"\ngateway.port = 1080\n' if proxy else ""
        # Since WeeChat 4.0 TLS is on unless one says otherwise. `ssl` is what 3 calls it; a newer one reads that too.
        plain = "lab.ssl = off\n"
        settings = {
            "weechat": f"[proxy]\n{known}",
            "irc": f'[server]\n{way}{plain}lab.addresses = "{host}/{IRC}"\nlab.nicks = "{nick}"\n'
            "lab.autoconnect = on\n",
            "xfer": f'[file]\nauto_accept_files = on\nauto_resume = on\ndownload_path = "{self.downloads}"\n'
            "use_nick_in_filename = off\nauto_rename = off\n",
            "fifo": f'[file]\nenabled = on\npath = "{self._fifo}"\n',
            "logger": "[file]\nflush_delay = 0\n",
        }
        for name, text in settings.items():
            (self.folder / f"{name}.conf").write_text(text)
        program = installed("weechat-headless", "/usr/bin/weechat-headless")
        self._process = lab.popen(role, [program, "--dir", self.folder])
        self._log = self.folder / "logs" / "irc.server.lab.weechatlog"
        self.wait_to_see("hello")

    def __enter__(self) -> Weechat:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.says("/quit", "core.weechat")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(3)
        self.lab.stop(self._process)

    def says(self, line: str, buffer: str = "irc.server.lab") -> None:
        """Type a line into a buffer."""
        with self._fifo.open("w") as fifo:
            fifo.write(f"{buffer} *{line}\n")

    def wait_to_see(self, text: str) -> None:
        """Until the server has said it."""

        def is_there() -> bool:
            assert self._process.poll() is None, self.lab.tail_of_logs()
            return self._log.exists() and text in self._log.read_text(errors="replace")

        self.lab.wait_for(is_there, 20, f"WeeChat to show {text!r}")

    def began(self, name: str, data: bytes) -> None:
        """There is a piece of this file from an earlier attempt."""
        (self.downloads / f"{name}.part").write_bytes(data)

    def has(self, name: str, data: bytes) -> bool:
        """Whether it has fetched this file whole."""
        path = self.downloads / name
        return path.exists() and path.read_bytes() == data
