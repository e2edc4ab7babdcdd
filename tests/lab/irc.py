"""Real IRC: ngircd outside, and irssi as a user types it."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.peers import installed, unpacked

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

    def serves() -> bool:
        assert process.poll() is None, lab.tail_of_logs()
        try:
            lab.connect("outside", host, IRC, timeout=1).close()
        except OSError:
            return False
        return True

    lab.wait_for(serves, 10, "ngircd")
    return process


class Irssi:
    """irssi in a terminal, connected to `host` as `nick`. It takes files that are offered, and goes on with halves."""

    def __init__(self, lab: Lab, role: Role, host: str, nick: str) -> None:
        self.lab = lab
        self.folder = lab.tmp / f"irssi-{nick}-{len(list(lab.tmp.glob('irssi-*')))}"
        self.downloads = self.folder / "downloads"
        self.downloads.mkdir(parents=True)
        settings = {
            "dcc_autoget": "on",
            "dcc_autoaccept_lowports": "on",  # port 0 of passive offers is one
            "dcc_autoresume": "on",
            "dcc_autorename": "off",
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

    def has(self, name: str, data: bytes) -> bool:
        """Whether it has fetched this file whole."""
        path = self.downloads / name
        return path.exists() and path.read_bytes() == data
