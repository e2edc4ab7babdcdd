"""Every byte arrives, and none twice, in connections through all fronts at once, with a module that does whatever it
likes, while the gateway is reloaded and upgraded and workers are killed. What had arrived of a connection that ended
with its worker was right; the kernel ends it by a reset or, where all had been read, by a FIN."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.net.socks_wire import GREETING, receive, request5
from tests.net.test_upgrade import pid_of, upgrade

MODULE = Path(__file__).parents[1] / "modules" / "wild_alg.py"
WILD, PLAIN = 7050, 7051
WAYS = ("socks", "http", "transparent")
LONGEST = 60.0  # seconds until all that was said has to be there
SEED = 13


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Gateway]:
    site = lab.tmp / "wild"
    info = site / "wild-1.0.dist-info"
    info.mkdir(parents=True)
    for folder in (lab.tmp, site, info):
        folder.chmod(0o755)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wild\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[algate.alg]\nwild = wild_alg:Wild\n")
    (site / "wild_alg.py").write_text(MODULE.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        gateway = lab.start_gateway(
            lab.write_config(
                alg={"wild": {"ports": [WILD]}},
                socks={"protocols": ["socks5", "http"]},
                transparent={"ports": [WILD, PLAIN]},
                process={"workers": 2, "drain_timeout": 1, "retire_timeout": 120, "run_dir": str(lab.tmp / "wild-run")},
            )
        )
        yield gateway
        successor = pid_of(gateway)
        if successor not in (None, gateway.process.pid):
            os.kill(successor, signal.SIGTERM)
            lab.wait_for(lambda: not Path(f"/proc/{successor}").exists(), 20, "the new version to end")
        assert gateway.stop() == 0, lab.tail_of_logs()
        assert lab.leftovers() == []


class Echo:
    """A server that says again what it hears, in other pieces, and ends where its client ends."""

    def __init__(self, lab: Lab, port: int) -> None:
        self._listener = lab.listen("outside", SERVER4, port)
        self._listener.settimeout(None)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # for those that it accepts
        self._listener.listen(256)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        chance = random.Random(sock.fileno())
        with sock, contextlib.suppress(OSError):
            while part := sock.recv(chance.choice([10, 1000, 70_000])):
                if chance.randrange(8):
                    sock.sendall(part)
                else:
                    sock.sendall(part[:-1])
                    sock.send(part[-1:], socket.MSG_OOB)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Client:
    """Connects again and again, and says what it has in pieces, some of them urgent; some connections are reset in the
    middle. `kills`: an entry for each worker that was killed; `wrong`: what should not have been."""

    def __init__(self, lab: Lab, way: str, port: int, stop: threading.Event, kills: list[int]) -> None:
        self._lab, self._way, self._port, self._stop, self._kills = lab, way, port, stop, kills
        self._chance = random.Random(f"{SEED} {way} {port}")
        self.whole = self.cut = self.refused = 0
        self.wrong: list[str] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            kills = len(self._kills)
            try:
                sock = self._connect()
            except (OSError, AssertionError):
                self.refused += 1
                continue
            with sock:
                self._talk(sock, kills)

    def _connect(self) -> socket.socket:
        if self._way == "transparent":
            return self._lab.connect("inside", SERVER4, self._port)
        sock = self._lab.connect("inside", ROUTER_IN4, 1080)
        if self._way == "http":
            sock.sendall(b"CONNECT %b:%d HTTP/1.1\r\n\r\n" % (SERVER4.encode(), self._port))
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += receive(sock, 1)
            assert b" 200 " in head
            return sock
        sock.sendall(GREETING)
        assert receive(sock, 2) == b"\5\0"
        sock.sendall(request5(SERVER4, self._port))
        assert receive(sock, 10)[1] == 0
        return sock

    def _talk(self, sock: socket.socket, kills: int) -> None:
        chance, heard = self._chance, bytearray()
        said = chance.randbytes(chance.choice([10, 3000, 100_000, 1_000_000]))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sock.settimeout(LONGEST)
        failures: list[OSError] = []

        def hear() -> None:
            try:
                while part := sock.recv(65536):
                    heard.extend(part)
            except OSError as error:
                failures.append(error)

        hearing = threading.Thread(target=hear, daemon=True)
        hearing.start()
        resets = chance.randrange(5) == 0
        at = 0
        try:
            while at < len(said):
                piece = said[at : at + chance.choice([1, 500, 20_000, 300_000])]
                at += len(piece)
                if chance.randrange(6):
                    sock.sendall(piece)
                else:
                    sock.sendall(piece[:-1])
                    sock.send(piece[-1:], socket.MSG_OOB)
                if not chance.randrange(4):
                    time.sleep(chance.random() / 50)
                if resets and not chance.randrange(4):
                    break
            else:
                resets = False
                sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            failures.append(error)
        if resets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.shutdown(socket.SHUT_RD)
            hearing.join(5)
        else:
            hearing.join(2 * LONGEST)
        if any(isinstance(failure, TimeoutError) for failure in failures):
            self.wrong.append(f"{self._way} {self._port}: stands after {len(heard)} of {len(said)}")
        if said[: len(heard)] != heard:
            self.wrong.append(f"{self._way} {self._port}: something else after {_same(said, heard)} of {len(said)}")
        elif resets:
            pass
        elif failures or (len(heard) < len(said) and len(self._kills) > kills):
            self.cut += 1
        elif len(heard) < len(said):
            self.wrong.append(f"{self._way} {self._port}: an end after {len(heard)} of {len(said)}")
        else:
            self.whole += 1


def _same(said: bytes, heard: bytes | bytearray) -> int:
    return next((at for at, (one, other) in enumerate(zip(said, heard, strict=False)) if one != other), len(said))


def worker_pids(gateway: Gateway) -> list[int]:
    return [row["pid"] for row in gateway.admin("status") if row["process"].startswith("worker-")]


@pytest.mark.slow
def test_whatever_happens_to_the_gateway(lab: Lab, gateway: Gateway) -> None:
    echoes = [Echo(lab, port) for port in (WILD, PLAIN)]
    stop = threading.Event()
    kills: list[int] = []

    def kill(pid: int) -> None:
        kills.append(pid)
        os.kill(pid, signal.SIGKILL)

    clients = [Client(lab, way, port, stop, kills) for way in WAYS for port in (WILD, WILD, PLAIN)]
    try:
        time.sleep(1)
        quiet = sum(client.cut for client in clients)
        assert not quiet, "connections end though nothing has happened"
        for _ in range(3):
            os.kill(pid_of(gateway) or 0, signal.SIGHUP)
            time.sleep(0.5)
        upgrade(gateway)
        time.sleep(1)
        assert not sum(client.cut for client in clients), "a reload or an upgrade has ended connections"
        for _ in range(3):
            kill(worker_pids(gateway)[0])
            os.kill(pid_of(gateway) or 0, signal.SIGHUP)
            time.sleep(1)
        upgrade(gateway)
        kill(worker_pids(gateway)[-1])
        time.sleep(1)
    finally:
        stop.set()
        for client in clients:
            client.thread.join(2 * LONGEST)
        for echo in echoes:
            echo.close()
    print([(client.whole, client.cut, client.refused) for client in clients])
    assert not [wrong for client in clients for wrong in client.wrong], lab.tail_of_logs()
    for client in clients:
        assert client.whole > 5, "it was hardly served"
