"""`[alg.ftp] convert`: clients that can do one mode only, with servers that can do the other one only."""

from __future__ import annotations

import pytest

from tests.lab.lab import CLIENT4, ROUTER_IN4, SERVER4, STRANGER4, Lab, Role
from tests.net.ftp_clients import CLIENTS, Job
from tests.net.ftp_control import Control, fails, port_command, split

SIZE = 300_000
SOCKS = ["--socks5-hostname", f"{ROUTER_IN4}:1080"]


def cut_off(lab: Lab, role: Role, endpoint: tuple[str, int]) -> bool:
    """Whether who connects there is reset, or does not even get that far."""
    try:
        with lab.connect(role, *endpoint, timeout=2) as sock:
            sock.recv(1)
    except OSError:
        return True
    return False


@pytest.mark.parametrize(
    ("version", "extra"),
    [(4, []), (4, ["--disable-eprt"]), (6, []), (4, SOCKS)],
    ids=["eprt", "port", "ipv6", "socks"],
)
def test_an_active_client_and_a_passive_server(strict_lab: Lab, version: int, extra: list[str]) -> None:
    gateway = strict_lab.start_gateway(strict_lab.write_config(alg={"ftp": {"convert": "active"}}))
    server = strict_lab.vsftpd(port_enable="NO")
    server.put("pub/here", b"x" * SIZE)
    base = ["curl", "-sS", "-m", "20", "--ftp-port", "-", *extra]
    assert strict_lab.run("inside", [*base, server.url("pub/here", version)]).stdout == "x" * SIZE
    strict_lab.run("inside", [*base, "-T", server.root / "pub/here", server.url("upload/there", version)])
    assert (server.root / "upload" / "there").read_bytes() == b"x" * SIZE
    assert "here" in strict_lab.run("inside", [*base, server.url("pub/", version)]).stdout
    missing = strict_lab.run("inside", [*base, server.url("pub/missing", version)], check=False)
    assert missing.returncode == 78, missing.stderr  # the server's 550, and not a time-out
    gateway.wait_for_log("alg.edit.*ftp.convert")
    strict_lab.wait_for(lambda: gateway.admin("flows") == [], 5, "the flows to end")
    server.stop()
    assert gateway.stop() == 0


@pytest.mark.parametrize("client", ["lftp", "tnftp"])
def test_other_active_clients(strict_lab: Lab, client: str) -> None:
    gateway = strict_lab.start_gateway(strict_lab.write_config(alg={"ftp": {"convert": "active"}}))
    server = strict_lab.vsftpd(port_enable="NO")
    server.put("pub/here", b"x" * SIZE)
    fetched = strict_lab.tmp / f"fetched-{client}"
    CLIENTS[client](Job(strict_lab, server, 4, True), "pub/here", fetched, server.root / "pub/here", "upload/there")
    assert fetched.read_bytes() == b"x" * SIZE
    assert (server.root / "upload" / "there").read_bytes() == b"x" * SIZE
    server.stop()
    assert gateway.stop() == 0


@pytest.mark.parametrize("extra", [[], ["--disable-epsv"]], ids=["epsv", "pasv"])
def test_a_passive_client_and_an_active_server(strict_lab: Lab, extra: list[str]) -> None:
    gateway = strict_lab.start_gateway(strict_lab.write_config(alg={"ftp": {"convert": "passive"}}))
    server = strict_lab.vsftpd(pasv_enable="NO")
    server.put("pub/here", b"x" * SIZE)
    base = ["curl", "-sS", "-m", "20", "--no-ftp-skip-pasv-ip", *extra]
    assert strict_lab.run("inside", [*base, server.url("pub/here")]).stdout == "x" * SIZE
    strict_lab.run("inside", [*base, "-T", server.root / "pub/here", server.url("upload/there")])
    assert (server.root / "upload" / "there").read_bytes() == b"x" * SIZE
    missing = strict_lab.run("inside", [*base, server.url("pub/missing")], check=False)
    assert missing.returncode == 78, missing.stderr
    strict_lab.wait_for(lambda: gateway.admin("flows") == [], 5, "the flows to end")
    assert gateway.admin("pinholes") == []
    server.stop()
    assert gateway.stop() == 0


def test_off_means_off(strict_lab: Lab) -> None:
    gateway = strict_lab.start_gateway()
    server = strict_lab.vsftpd(port_enable="NO")
    server.put("pub/here", b"x")
    argv = ["curl", "-sS", "-m", "10", "--ftp-port", "-", server.url("pub/here")]
    assert strict_lab.run("inside", argv, check=False).returncode == 30  # PORT failed
    server.stop()
    assert gateway.stop() == 0


def test_a_meeting_is_for_the_client_and_the_server_alone(lab: Lab) -> None:
    gateway = lab.start_gateway(lab.write_config(alg={"ftp": {"convert": "passive"}}))
    listener = lab.listen("outside", SERVER4, 21)
    client = Control(lab, SERVER4)
    server = listener.accept()[0]
    server.settimeout(10)
    server.sendall(b"220 ready\r\n")
    assert client.reply() == "220 ready"
    client.send(b"PASV\r\n")
    command = server.recv(100).decode()
    assert command.startswith("PORT 203,0,113,2,")
    server.sendall(b"200 fine\r\n")
    numbers = client.reply().partition("(")[2].partition(")")[0].split(",")
    inner = ".".join(numbers[:4]), int(numbers[4]) * 256 + int(numbers[5])
    assert inner[0] == ROUTER_IN4
    rows = gateway.admin("pinholes")
    assert {(row["reason"], row["peer"]) for row in rows} == {("ftp.convert", SERVER4), ("ftp.convert", CLIENT4)}
    (pinhole,) = [row for row in rows if row["peer"] == SERVER4]
    public = split(pinhole["public"])
    assert command == port_command(*public).decode()
    assert cut_off(lab, "client2", inner)
    near = lab.connect("inside", *inner)
    assert cut_off(lab, "stranger", public)
    far = lab.connect("outside", *public)
    far.sendall(b"hello")
    assert near.recv(5) == b"hello"
    near.sendall(b"world")
    assert far.recv(5) == b"world"
    assert fails(lab, "outside", public)
    assert fails(lab, "inside", inner)
    assert gateway.admin("pinholes") == []
    for sock in (near, far, client.socket, server, listener):
        sock.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flows to end")
    assert gateway.stop() == 0


def test_no_relay_to_another_than_the_server(strict_lab: Lab) -> None:
    """A server that names a third host in 227 is connected to itself."""
    gateway = strict_lab.start_gateway(strict_lab.write_config(alg={"ftp": {"convert": "active"}}))
    listener, data = strict_lab.listen("outside", SERVER4, 21), strict_lab.listen("outside", SERVER4)
    near = strict_lab.listen("inside", CLIENT4)
    client = Control(strict_lab, SERVER4)
    server = listener.accept()[0]
    server.settimeout(10)
    server.sendall(b"220 ready\r\n")
    assert client.reply() == "220 ready"
    client.send(port_command(CLIENT4, near.getsockname()[1]))
    assert server.recv(100) == b"PASV\r\n"
    server.sendall(b"227 (" + port_command(STRANGER4, data.getsockname()[1])[5:-2] + b")\r\n")
    assert client.reply() == "200 PORT command successful."
    client.send(b"RETR x\r\n")
    far, _ = data.accept()
    inside, peer = near.accept()
    assert peer[0] == ROUTER_IN4
    far.sendall(b"hello")
    assert inside.recv(5) == b"hello"
    for sock in (far, inside, client.socket, server, listener, data, near):
        sock.close()
    strict_lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flows to end")
    assert gateway.stop() == 0
