"""The lab itself: its routes and its firewall are as they say, its servers serve, and it sees what is left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.lab.lab import (
    CLIENT4,
    CLIENT6,
    ROUTER_OUT4,
    ROUTER_OUT6,
    SERVER4,
    SERVER6,
    Lab,
    LabError,
    Role,
)
from tests.lab.namespaces import remove_stale
from tests.lab.private import shown

pytestmark = pytest.mark.net


def reaches(lab: Lab, role: Role, host: str, port: int = 9) -> bool:
    try:
        lab.connect(role, host, port, timeout=0.5).close()
    except ConnectionRefusedError:
        return True  # the host itself said so
    except OSError:
        return False
    return True


def test_clients_get_out_through_nat_and_nobody_gets_in() -> None:
    with Lab() as lab:
        for host, router in ((SERVER4, ROUTER_OUT4), (SERVER6, ROUTER_OUT6)):
            with lab.listen("outside", host, 9999) as listener, lab.connect("client2", host, 9999):
                connection, address = listener.accept()
                connection.close()
                assert address[0] == router
        for role in ("outside", "stranger"):
            assert not reaches(lab, role, CLIENT4)
            assert not reaches(lab, role, CLIENT6)


def test_a_strict_router_forwards_nothing_but_control_connections() -> None:
    with Lab(strict=True, nat6=False) as lab:
        for host in (SERVER4, SERVER6):
            assert reaches(lab, "inside", host, 21)
            assert not reaches(lab, "inside", host, 22)


@pytest.mark.parametrize("name", ["vsftpd", "pure_ftpd", "proftpd"])
def test_servers_serve_without_a_gateway(name: str) -> None:
    data = os.urandom(100_000)
    with Lab() as lab:
        server = getattr(lab, name)()
        file = lab.tmp / "file"
        file.write_bytes(data)
        for version in (4, 6):
            server.put("pub/file", data)
            copy = lab.tmp / "copy"
            lab.run("inside", ["curl", "-sS", "-m", "10", "-o", copy, server.url("pub/file", version)])
            assert copy.read_bytes() == data
            lab.run("inside", ["curl", "-sS", "-m", "10", "-T", file, server.url("upload/file", version)])
            assert (server.root / "upload/file").read_bytes() == data
            (server.root / "upload/file").unlink()
        server.stop()
        assert lab.leftovers() == []


def test_what_is_left_is_seen_and_then_removed() -> None:
    with Lab() as lab:
        assert lab.leftovers() == []
        lab.popen("inside", ["sleep", "60"])  # tracked, so not left over
        stray = subprocess.Popen(["ip", "netns", "exec", lab.ns("outside"), "sleep", "61"])
        lab.run("router", ["nft", "add", "table", "inet", "left"])
        lab.run("router", ["iptables", "-A", "FORWARD", "-j", "DROP"])
        lab.wait_for(lambda: any("sleep 61" in line for line in lab.leftovers()), 5, "the stray to start")
        assert lab.leftovers() == [
            f"process {stray.pid}: sleep 61",
            "new in netfilter: -A FORWARD -j DROP",
            "new in netfilter: table inet left",
        ]
        namespace, tmp = Path("/run/netns", lab.ns("router")), lab.tmp
        assert namespace.exists()
    stray.wait(5)
    assert not namespace.exists()
    assert not tmp.exists()


def test_errors_show_what_the_program_said() -> None:
    with Lab() as lab:
        with pytest.raises(LabError, match=r"(?s)exit 3.*good bye"):
            lab.run("inside", ["sh", "-c", "echo good bye; exit 3"])
        with pytest.raises(LabError, match=r"not done after 0\.1 s"):
            lab.run("inside", ["sleep", "5"], timeout=0.1)
        with pytest.raises(LabError, match="in vain for the moon"):
            lab.wait_for(lambda: False, 0.05, "the moon")


def test_only_labs_of_dead_processes_are_removed() -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale, lives, other = f"algate-{dead.pid}-beef-router", f"algate-{os.getpid()}-beef-router", "algate-other-beef"
    try:
        for name in (stale, lives, other):
            subprocess.run(["ip", "netns", "add", name], check=True)
        assert stale in remove_stale()
        assert not Path("/run/netns", stale).exists()
        assert Path("/run/netns", lives).exists()
        assert Path("/run/netns", other).exists()
    finally:
        for name in (stale, lives, other):
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)


def test_another_user_gets_to_a_folder_below_a_private_one() -> None:
    """And to nothing else there; what is bound is the folder itself, seen in that command's mount namespace only."""
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    with Lab() as lab:
        home = lab.tmp / "home"
        folders = [home / "a/checkout", home / "b"]
        for folder in (*folders, folders[0] / ".venv"):
            folder.mkdir(parents=True)
            (folder / "said").write_text(folder.name)
        (home / "secret").touch()
        home.chmod(0o700)
        files = [folder / "said" for folder in folders]
        assert lab.run("inside", [*user, "cat", files[0]], check=False).returncode
        before = [*shown(*folders, folders[0] / ".venv"), *user]
        assert lab.run("inside", [*before, "cat", *files, folders[0] / ".venv/said"]).stdout == "checkoutb.venv"
        assert lab.run("inside", [*before, "ls", "-A", home, home / "a"]).stdout.split() == [
            f"{home}:", "a", "b", f"{home / 'a'}:", "checkout",
        ]  # fmt: skip
        assert lab.run("inside", [*before, "sh", "-c", 'exit "$1"', "sh", "7"], check=False).returncode == 7
        assert (home / "secret").exists()
        assert shown(lab.tmp) == [], "everybody gets there"
