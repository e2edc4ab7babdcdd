"""An operator's day: a stopped broker, deaf name servers, a full disk, a clock that jumps, a changed address."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, Lab
from tests.lab.servers import FtpServer
from tests.net.ftp_control import open_pinhole, port_command, session, split
from tests.net.socks_wire import ask5

CLOCK_SOURCE = Path(__file__).parents[1] / "support/clock.c"
NEW_OUT4 = "203.0.113.3"


def pid_of(gateway: Gateway, name: str) -> int:
    (row,) = [row for row in gateway.admin("status") if row["process"] == name]
    return int(row["pid"])


def serve_echo(lab: Lab) -> tuple[socket.socket, int]:
    """A TCP server outside that sends back what it gets; its listener (to be closed) and port."""
    listener = lab.listen("outside", SERVER4)
    listener.settimeout(None)

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener, listener.getsockname()[1]


def through_socks(lab: Lab, port: int, host: str = SERVER4) -> tuple[int, socket.socket]:
    """The reply code of a CONNECT, and the connection."""
    sock = lab.connect("inside", ROUTER_IN4, 1080, timeout=10)
    return ask5(sock, host, port)[0], sock


def echoes(sock: socket.socket, data: bytes = b"still there?") -> bool:
    sock.sendall(data)
    got = b""
    while len(got) < len(data):
        chunk = sock.recv(len(data) - len(got))
        if not chunk:
            return False
        got += chunk
    return got == data


@contextmanager
def echo_server(lab: Lab) -> Iterator[int]:
    listener, port = serve_echo(lab)
    try:
        yield port
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


# --- processes ------------------------------------------------------------------------------------------------------


def test_a_stopped_broker_refuses_pinholes_and_holds_up_nothing_else(lab: Lab, server: FtpServer) -> None:
    gateway = lab.start_gateway()
    control, listener = session(lab, server), lab.listen("inside", CLIENT4)
    pid = pid_of(gateway, "broker")
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        control.send(port_command(CLIENT4, listener.getsockname()[1]))
        with echo_server(lab) as port:  # meanwhile others are served
            code, sock = through_socks(lab, port)
            assert code == 0
            assert echoes(sock)
            sock.close()
            assert time.monotonic() - began < 5
        control.socket.settimeout(10)
        assert control.reply()[:1] in "245"  # an answer, not silence
        assert time.monotonic() - began < 10
        gateway.wait_for_log(r"event=pinhole.refused .*rule=broker")
        assert control.command("NOOP").startswith("200")
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # the watchdog was quicker
    listener.close()

    def opens() -> bool:
        again = session(lab, server)
        try:
            listener, _ = open_pinhole(lab, gateway, again)
        except (AssertionError, ValueError, ConnectionError):
            return False
        finally:
            again.close()
        listener.close()
        return True

    lab.wait_for(opens, 15, "pinholes to open again")
    control.close()
    assert gateway.stop() == 0


@pytest.mark.slow
def test_any_process_may_be_killed_while_there_is_load(lab: Lab, server: FtpServer) -> None:
    """Downloads that the victim does not carry come through whole, and new connections are served all the time."""
    gateway = lab.start_gateway()
    size = 8_000_000
    server.put("pub/load", os.urandom(size))
    wanted = hashlib.sha256((server.root / "pub/load").read_bytes()).hexdigest()
    stop, results = threading.Event(), dict.fromkeys(("whole", "broken", "connected", "refused"), 0)
    lock = threading.Lock()

    def download() -> None:
        while not stop.is_set():
            url = server.url("pub/load")
            done = subprocess.run(
                ["ip", "netns", "exec", lab.ns("inside"), "curl", "-s", "--max-time", "20", "-o", "-", url],
                capture_output=True, check=False,
            )  # fmt: skip
            with lock:
                whole = done.returncode == 0 and hashlib.sha256(done.stdout).hexdigest() == wanted
                results["whole" if whole else "broken"] += 1

    with echo_server(lab) as port:

        def connect() -> None:
            while not stop.is_set():
                try:
                    code, sock = through_socks(lab, port)
                    good = code == 0 and echoes(sock)
                    sock.close()
                except OSError:
                    good = False
                with lock:
                    results["connected" if good else "refused"] += 1

        threads = [threading.Thread(target=work) for work in (download, download, connect, connect)]
        for thread in threads:
            thread.start()
        try:
            victims = [row["process"] for row in gateway.admin("status") if row["process"] != "supervisor"]
            for victim in victims:
                with lock:
                    before = dict(results)
                pid = pid_of(gateway, victim)
                os.kill(pid, signal.SIGKILL)
                # Both kinds of work go on, and the victim is replaced.
                lab.wait_for(
                    lambda before=before: (
                        results["whole"] > before["whole"] + 2  # type: ignore[misc]
                        and results["connected"] > before["connected"] + 20
                    ),
                    30,
                    f"work after the death of {victim}",
                )
                lab.wait_for(
                    lambda victim=victim, pid=pid: _replaced(gateway, victim, pid),  # type: ignore[misc]
                    10,
                    f"{victim} to be replaced",
                )
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    # What a killed worker carried at that moment is all that is lost: two downloads and two connections at the most.
    workers = len([victim for victim in victims if victim.startswith("worker")])
    assert results["broken"] <= 2 * workers, results
    assert results["refused"] <= 2 * workers, results
    assert gateway.stop() == 0


def _replaced(gateway: Gateway, name: str, pid: int) -> bool:
    status = gateway.algate("status", "--json", check=False)
    return status.returncode == 0 and pid_of(gateway, name) != pid


# --- what the gateway leans on --------------------------------------------------------------------------------------


def test_name_servers_that_do_not_answer_hold_up_only_those_who_ask(lab: Lab) -> None:
    with lab.enter("outside"):
        deaf = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        deaf.bind((SERVER4, 53))
    config = lab.write_config(dns={"servers": [SERVER4], "timeout": 2.0})
    gateway = lab.start_gateway(config)
    with echo_server(lab) as port, deaf:
        began = time.monotonic()
        asking = []
        for i in range(20):
            sock = lab.connect("inside", ROUTER_IN4, 1080, timeout=10)
            sock.sendall(b"\5\1\0\5\1\0\3" + bytes([len(name := f"host{i}.example.com".encode())]) + name + b"\0\x50")
            asking.append(sock)
        code, sock = through_socks(lab, port)  # an address: at once
        assert code == 0
        assert echoes(sock)
        assert time.monotonic() - began < 2
        sock.close()
        for waiting in asking:
            answer = b""
            while chunk := waiting.recv(100):
                answer += chunk
            assert answer[:4] == b"\5\0\5\4", answer  # RFC 1928 section 6: host unreachable
            waiting.close()
        assert 1.5 < time.monotonic() - began < 6
    assert gateway.stop() == 0


def test_a_full_disk_takes_log_lines_and_nothing_else(lab: Lab) -> None:
    disk = lab.tmp / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=True)
    config = lab.write_config()
    gateway = Gateway(lab, config)
    gateway.log = disk / "algate.log"
    try:
        gateway.start()
        with echo_server(lab) as port:
            steady = through_socks(lab, port)[1]
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1024))
                except OSError:
                    pass
            full = gateway.log.stat().st_size
            for _ in range(200):  # each logs two lines of 150 bytes and more
                code, sock = through_socks(lab, port)
                assert code == 0
                assert echoes(sock)
                sock.close()
            assert gateway.log.stat().st_size - full < 8192  # the last page's rest
            assert echoes(steady)
            filler.unlink()
            code, sock = through_socks(lab, port)
            assert code == 0
            gateway.wait_for_log(r"event=log.lost .*lines=\d+")
            gateway.wait_for_log(rf"event=flow.open .*:{sock.getsockname()[1]}")
            sock.close()
            steady.close()
        lines = gateway.log_lines()
        torn = [line for line in lines if "event=" not in line]
        assert len(torn) <= len(gateway.pids()) + 1  # each process may have been in the middle of one
        assert gateway.stop() == 0
    finally:
        if gateway.running:
            gateway.stop()
        subprocess.run(["umount", disk], check=True)


def test_a_clock_that_jumps_ends_nothing(lab: Lab, server: FtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    library, offset = lab.tmp / "clock.so", lab.tmp / "clock"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, CLOCK_SOURCE, "-ldl"], check=True)
    offset.write_text("0")
    offset.chmod(0o644)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CLOCK_OFFSET", str(offset))
    gateway = lab.start_gateway()
    monkeypatch.undo()
    control = session(lab, server)
    with echo_server(lab) as port:
        relayed = through_socks(lab, port)[1]
        for days in (400, -400):
            offset.write_text(str(days * 86400))
            lines = len(gateway.log_lines())
            listener, pinhole = open_pinhole(lab, gateway, control)
            assert echoes(relayed)
            lab.connect("outside", *split(pinhole["public"])).close()
            listener.accept()[0].close()
            listener.close()
            code, new = through_socks(lab, port)
            assert code == 0
            assert echoes(new)
            new.close()
            year = datetime.fromtimestamp(time.time() + days * 86400, UTC).year
            gateway.wait_for_log(rf"timestamp={year}.* event=flow.open .*front=socks", after=lines)  # it has jumped
        relayed.close()
    control.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 5, "the flows to end")
    durations = [line.partition("duration=")[2].split()[0] for line in gateway.log_lines() if "event=flow.end" in line]
    assert durations
    assert all(0 <= float(duration) < 60 for duration in durations), durations
    assert gateway.stop() == 0


# --- the network ----------------------------------------------------------------------------------------------------


def _ip(lab: Lab, *arguments: str) -> None:
    lab.run("router", ["ip", *arguments])


@pytest.mark.parametrize("interface", ["eth0", "eth1"])
def test_an_interface_that_goes_down_and_up_ends_nothing(lab: Lab, server: FtpServer, interface: str) -> None:
    gateway = lab.start_gateway()
    control = session(lab, server)
    listener, pinhole = open_pinhole(lab, gateway, control)
    with echo_server(lab) as port:
        relayed = through_socks(lab, port)[1]
        _ip(lab, "link", "set", interface, "down")
        relayed.sendall(b"into the dark")
        _ip(lab, "link", "set", interface, "up")
        relayed.settimeout(20)
        got = b""
        while len(got) < 13:
            got += relayed.recv(100)
        assert got == b"into the dark"
        relayed.close()
    assert control.command("NOOP").startswith("200")
    lab.connect("outside", *split(pinhole["public"])).close()
    listener.accept()[0].close()
    listener.close()
    control.close()
    if interface == "eth0":  # IPv6 addresses go with the link
        _ip(lab, "-6", "address", "replace", "2001:db8:113::2/64", "dev", "eth0", "nodad")
    else:
        _ip(lab, "-6", "address", "replace", "fd00:56::2/64", "dev", "eth1", "nodad")
    assert gateway.stop() == 0


def test_a_changed_outside_address_is_told_by_resets_and_advertised_from_then_on(lab: Lab, server: FtpServer) -> None:
    gateway = lab.start_gateway()
    control = session(lab, server)
    listener, pinhole = open_pinhole(lab, gateway, control)
    assert split(pinhole["public"])[0] == ROUTER_OUT4
    with echo_server(lab) as port:
        relayed = through_socks(lab, port)[1]
        local = lab.connect("inside", ROUTER_IN4, 1080)  # a handshake that has nothing to do with the outside
        try:
            _ip(lab, "address", "add", f"{NEW_OUT4}/24", "dev", "eth0")
            _ip(lab, "address", "delete", f"{ROUTER_OUT4}/24", "dev", "eth0")
            _ip(lab, "address", "replace", f"{NEW_OUT4}/24", "dev", "eth0")  # a secondary one went with the first
            for sock in (relayed, control.socket):
                sock.settimeout(15)
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
            gateway.wait_for_log(rf"event=flow.departed .*{ROUTER_OUT4}")
            lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the old pinhole to be closed")
            assert ask5(local, SERVER4, port)[0] == 0
            assert echoes(local)
            new = session(lab, server)
            second, pinhole = open_pinhole(lab, gateway, new)
            assert split(pinhole["public"])[0] == NEW_OUT4
            lab.connect("outside", *split(pinhole["public"])).close()
            second.accept()[0].close()
            second.close()
            new.close()
        finally:
            _ip(lab, "address", "replace", f"{ROUTER_OUT4}/24", "dev", "eth0")
            _ip(lab, "address", "delete", f"{NEW_OUT4}/24", "dev", "eth0")
            _ip(lab, "address", "replace", f"{ROUTER_OUT4}/24", "dev", "eth0")
        local.close()
        relayed.close()
    control.close()
    listener.close()
    assert gateway.stop() == 0
