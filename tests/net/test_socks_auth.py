"""Who may come in, with real clients: passwords (RFC 1929), ident (RFC 1413), and what guessing leads to."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import socks  # type: ignore[import-untyped]

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, ROUTER_IN4, ROUTER_IN6, SERVER4, Lab, Role
from tests.lab.peers import unpacked
from tests.net.socks_wire import receive, request4, request5

PORT = 8080
BAN = 8.0
PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nhi\n"
URL = f"http://{SERVER4}:{PORT}/"
# What docs/how-to/socks-authentication.md gives to fail2ban, which takes the time out of the line before it looks.
FAILREGEX = re.findall(r"^failregex = (.*)$", Path("docs/how-to/socks-authentication.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def server(lab: Lab) -> Iterator[None]:
    """A web server of one page."""
    listener = lab.listen("outside", "0.0.0.0", PORT)
    listener.settimeout(None)

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                request = b""
                while b"\r\n\r\n" not in request:
                    part = sock.recv(4096)
                    if not part:
                        break
                    request += part
                else:
                    sock.sendall(PAGE)

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


def start(lab: Lab, auth: list[str], users: Path, **keys: object) -> Gateway:
    """A gateway with the user ann, of group staff."""
    users.unlink(missing_ok=True)
    socks_section = {"auth": auth, "users": str(users), **keys}
    config = lab.write_config(network={"inside_interfaces": None}, socks=socks_section, process={"workers": 1})
    gateway = Gateway(lab, config)
    set_password(gateway, users, "ann", "secret word")
    users.write_text(users.read_text().replace("\n", ":staff\n"))
    gateway.start(rules=False)
    return gateway


def set_password(gateway: Gateway, users: Path, user: str, password: str) -> None:
    gateway.lab.run("router", [gateway.command, "passwd", users, user], stdin=f"{password}\n")


def curl(lab: Lab, *arguments: str, role: Role = "inside", proxy: str = "--socks5", port: int = 1080) -> str:
    """What it printed, or its error."""
    done = lab.run(role, ["curl", "-sS", "-m", "9", proxy, f"{ROUTER_IN4}:{port}", *arguments, URL], check=False)
    return done.stdout or done.stderr


@pytest.fixture(scope="module")
def gateway(lab: Lab, server: None) -> Iterator[Gateway]:
    gateway = start(lab, ["password"], lab.tmp / "users", guard={"failures": 0, "window": 1})
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture
def guarded(lab: Lab, server: None) -> Iterator[Gateway]:
    """One that bans after five guesses, at port 1081."""
    gateway = start(
        lab,
        ["password"],
        lab.tmp / "users-guarded",
        listen=[f"{ROUTER_IN4}:1081"],
        guard={"failures": 5, "window": 60, "ban": BAN},
    )
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(autouse=True)
def no_password_on_any_log(lab: Lab) -> Iterator[None]:
    yield
    for path in lab.logs.glob("*.log"):
        text = path.read_text(errors="replace")
        for secret in ("secret word", "wrong word", "$argon2", "Traceback"):
            assert secret not in text, f"{secret!r} is in {path}"


# --- passwords ------------------------------------------------------------------------------------------------------


def test_curl_with_a_password(lab: Lab, gateway: Gateway) -> None:
    assert curl(lab, "-U", "ann:secret word") == "hi\n"
    assert curl(lab, "--proxy-user", "ann:secret word", proxy="--socks5-hostname") == "hi\n"
    line = gateway.wait_for_log("event=flow.end .*user=ann")
    assert f"client={CLIENT4}:" in line
    assert f"target={SERVER4}:{PORT}" in line
    assert "rule=" in line
    assert "class=connection" in line
    assert re.search(rf"down={len(PAGE)} duration=\d", line)


@pytest.mark.parametrize("credentials", ["ann:wrong word", "bob:secret word", "ann:", ":secret word"])
def test_curl_with_wrong_credentials(lab: Lab, gateway: Gateway, credentials: str) -> None:
    assert "curl: (97)" in curl(lab, "-U", credentials, role="client2")


def test_without_credentials_there_is_no_method_in_common(lab: Lab, gateway: Gateway) -> None:
    with lab.connect("inside", ROUTER_IN4, 1080) as client:
        client.sendall(b"\5\2\0\1")
        assert receive(client, 2) == b"\5\xff"
        assert client.recv(1) == b""


@pytest.mark.parametrize("option", ["--socks4", "--socks4a"])
def test_version_4_has_no_passwords(lab: Lab, gateway: Gateway, option: str) -> None:
    assert "(91)" in curl(lab, proxy=option)


def test_no_success_before_the_check(lab: Lab, gateway: Gateway) -> None:
    """A request that comes with a wrong password, in one packet, gets a failure and nothing else."""
    login = b"\5\1\2" + b"\1\3ann\x0awrong word" + request5(SERVER4, PORT) + b"GET / HTTP/1.0\r\n\r\n"
    with lab.connect("client2", ROUTER_IN4, 1080) as client:
        began = time.monotonic()
        client.sendall(login)
        assert receive(client, 4) == b"\5\2\1\1"
        assert time.monotonic() - began > 0.2
        assert client.recv(1) == b""


def test_all_in_one_packet_and_byte_by_byte(lab: Lab, gateway: Gateway) -> None:
    login = b"\5\2\0\2" + b"\1\3ann\x0bsecret word" + request5(SERVER4, PORT) + b"GET / HTTP/1.0\r\n\r\n"
    for size in (1, 7, len(login)):
        with lab.connect("inside", ROUTER_IN4, 1080) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(login), size):
                client.sendall(login[at : at + size])
            assert receive(client, 4) == b"\5\2\1\0"
            assert receive(client, 10)[:2] == b"\5\0"
            assert receive(client, len(PAGE)) == PAGE


def test_pysocks_and_python_socks(lab: Lab, gateway: Gateway) -> None:
    for password in ("secret word", "wrong word"):
        with lab.enter("inside"), socks.socksocket() as client:
            client.set_proxy(socks.SOCKS5, ROUTER_IN4, 1080, username="ann", password=password)
            client.settimeout(9)
            if password == "secret word":
                client.connect((SERVER4, PORT))
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert client.recv(4096) == PAGE
            else:
                with pytest.raises(socks.ProxyError, match="authentication failed"):
                    client.connect((SERVER4, PORT))
        script = (
            "from python_socks.sync import Proxy\n"
            f"proxy = Proxy.from_url('socks5://ann:{password.replace(' ', '%20')}@{ROUTER_IN4}:1080')\n"
            f"sock = proxy.connect('{SERVER4}', {PORT}, timeout=9)\n"
            "sock.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
            "print(sock.recv(4096).decode()[-3:], end='')\n"
        )
        done = lab.run("inside", [sys.executable, "-c", script], check=False)
        if password == "secret word":
            assert done.stdout == "hi\n", done.stderr
        else:
            assert "ProxyError" in done.stderr


def test_a_changed_file_is_taken_up_and_a_spoilt_one_is_not(lab: Lab, gateway: Gateway) -> None:
    users = lab.tmp / "users"
    before = users.read_text()
    set_password(gateway, users, "bob", "other word")
    lab.wait_for(lambda: curl(lab, "-U", "bob:other word") == "hi\n", 8, "the new user to be known")
    seen = len(gateway.log_lines())
    users.write_text("ann:broken\n")
    gateway.wait_for_log("event=file.rejected .*line 1: .*class=resource", after=seen)
    assert curl(lab, "-U", "bob:other word") == "hi\n"
    users.write_text(before)
    gateway.wait_for_log("event=file.loaded", after=seen)
    lab.wait_for(lambda: "(97)" in curl(lab, "-U", "bob:other word"), 5, "the user to be forgotten")
    assert curl(lab, "-U", "ann:secret word") == "hi\n"


def test_a_replaced_worker_knows_the_users_too(lab: Lab, gateway: Gateway) -> None:
    seen = len(gateway.log_lines())
    (worker,) = (row["pid"] for row in gateway.admin("status") if row["process"].startswith("worker"))
    os.kill(worker, 9)
    gateway.wait_for_log("event=process.start", after=seen)
    assert curl(lab, "-U", "ann:secret word") == "hi\n"


def test_a_guesser_gets_slower_and_is_banned_and_nobody_else_is(lab: Lab, guarded: Gateway) -> None:
    """From client2, over and over; the honest user sits at another address."""
    seen = len(guarded.log_lines())
    waits = []
    for _ in range(20):
        began = time.monotonic()
        with lab.connect("client2", ROUTER_IN4, 1081, timeout=9) as client:
            client.sendall(b"\5\1\2")
            if receive(client, 2) == b"\5\xff":
                break
            client.sendall(b"\1\3ann\x0awrong word")
            assert receive(client, 2) == b"\1\1"
        waits.append(time.monotonic() - began)
        assert curl(lab, "-U", "ann:secret word", port=1081) == "hi\n"
    else:
        pytest.fail("the guesser was never banned")
    assert len(waits) <= 5
    assert waits[-1] > 3 * waits[0]
    assert waits == sorted(waits)
    guarded.wait_for_log(r"event=auth.ban address=192\.168\.56\.11 ", after=seen)
    began = time.monotonic()
    assert curl(lab, "-U", "ann:secret word", port=1081) == "hi\n"
    assert time.monotonic() - began < 2


def test_guesses_at_once_are_no_way_around_the_limit(lab: Lab, guarded: Gateway) -> None:
    seen = len(guarded.log_lines())
    clients = [lab.connect("client2", ROUTER_IN4, 1081, timeout=9) for _ in range(60)]
    for number, client in enumerate(clients):
        client.sendall(b"\5\1\2\1\3ann\x08guess %02d" % number)
    for client in clients:
        assert receive(client, 2) in (b"\5\2", b"\5\xff")
        assert client.recv(16) in (b"\1\1", b"")
        client.close()
    guarded.wait_for_log("event=auth.ban ", after=seen)
    assert curl(lab, "-U", "ann:secret word", port=1081) == "hi\n"


def test_ten_wrong_passwords_are_counted_over_the_workers_and_ban_one_host_of_a_lan(lab: Lab, server: None) -> None:
    """As it is without any key of `guard` but the ban, which is short here."""
    users = lab.tmp / "users-workers"
    config = lab.write_config(
        network={"inside_interfaces": None},
        socks={"auth": ["password"], "users": str(users), "listen": [f"[{ROUTER_IN6}]:1082"], "guard": {"ban": BAN}},
        process={"workers": 2},
    )
    gateway = Gateway(lab, config)
    set_password(gateway, users, "ann", "secret word")
    gateway.start(rules=False)
    try:
        clients = [lab.connect("inside", ROUTER_IN6, 1082) for _ in range(12)]
        for number, client in enumerate(clients):
            client.sendall(b"\5\1\2\1\3ann\x08guess %02d" % number)
        gateway.wait_for_log("event=auth.ban ", deadline=20)
        for client in clients:
            client.close()
        failed = [line for line in gateway.log_lines() if "event=auth.failed" in line]
        workers = {word for line in failed for word in line.split() if word.startswith("process=")}
        assert workers == {"process=worker-0", "process=worker-1"}, "the kernel gave all to one worker"
        assert all(f"address={CLIENT6} " in line for line in failed)
        assert len(failed) <= 12
        assert _signs_in(lab, "client2"), "a neighbour in the same /64"
        assert not _signs_in(lab, "inside")
    finally:
        assert gateway.stop() == 0, lab.tail_of_logs()


def _signs_in(lab: Lab, role: Role) -> bool:
    with lab.connect(role, ROUTER_IN6, 1082, timeout=9) as client:
        client.sendall(b"\5\1\2\1\3ann\x0bsecret word")
        return receive(client, 2) == b"\5\2" and receive(client, 2) == b"\1\0"


def test_fail2ban_finds_the_address_and_only_where_it_is(lab: Lab, gateway: Gateway) -> None:
    """With the expression of the documentation; a user name cannot put another address into a line."""
    assert FAILREGEX
    seen = len(gateway.log_lines())
    evil = b'x" event=auth.failed address=1.2.3.4 user="y\n timestamp=1'
    for host in (ROUTER_IN4, ROUTER_IN6):
        with lab.connect("client2", host, 1080, timeout=9) as client:
            client.sendall(b"\5\1\2\1" + bytes([len(evil)]) + evil + b"\1x")
            assert receive(client, 4) == b"\5\2\1\1"
    expression = re.compile(FAILREGEX[0].replace("<ADDR>", r"(?P<addr>[0-9a-fA-F.:]+)"))
    found = []
    for line in gateway.log_lines()[seen:]:
        match = expression.search(re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "", line))
        if match:
            found.append(match["addr"])
    assert found == ["192.168.56.11", "fd00:56::11"]


def test_nothing_of_authentication_leaks(lab: Lab, gateway: Gateway) -> None:
    """Clients that go at every point of the handshake leave neither descriptor nor greenlet behind."""
    login = b"\5\1\2" + b"\1\3ann\x0bsecret word" + request5(SERVER4, 9)
    (worker,) = (row["pid"] for row in gateway.admin("status") if row["process"].startswith("worker"))

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{worker}/fd"))

    assert curl(lab, "-U", "ann:secret word") == "hi\n"
    before = descriptors()
    for _ in range(5):
        for end in range(len(login)):
            with lab.connect("inside", ROUTER_IN4, 1080) as client:
                client.sendall(login[:end])
    lab.wait_for(lambda: descriptors() <= before, 12, f"{descriptors()} descriptors to become {before} again")
    assert curl(lab, "-U", "ann:secret word") == "hi\n"


# --- ident ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ident_gateway(lab: Lab, server: None) -> Iterator[Gateway]:
    gateway = start(
        lab,
        ["ident"],
        lab.tmp / "users-ident",
        listen=[f"{ROUTER_IN4}:1090", f"[{ROUTER_IN6}]:1090"],
        ident_timeout=1.0,
    )
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module")
def oidentd(lab: Lab, server: None) -> Iterator[None]:
    names = Path("/etc/netns", lab.ns("inside"), "resolv.conf")  # it asks for the name of whoever asks it
    names.parent.mkdir(parents=True, exist_ok=True)
    names.write_text("nameserver 127.0.0.1\n")
    config = lab.tmp / "oidentd.conf"
    config.write_text("")
    argv: list[str | Path] = [unpacked("oidentd", "usr/sbin/oidentd"), "-i", "-S", "-u", "0", "-g", "0", "-C", config]
    process = lab.popen("inside", argv)
    lab.wait_for(lambda: _answers(lab), 5, "oidentd" + lab.tail_of_logs())
    yield
    lab.stop(process)


def _answers(lab: Lab) -> bool:
    try:
        lab.connect("inside", CLIENT4, 113).close()
    except OSError:
        return False
    return True


def ask4(lab: Lab, userid: bytes, role: Role = "inside", host: str = ROUTER_IN4) -> bytes:
    """The first two bytes that the gateway answers to a version 4 request."""
    with lab.connect(role, host, 1090, timeout=9) as client:
        client.sendall(request4(SERVER4, PORT).replace(b"me\0", userid + b"\0"))
        return receive(client, 8)[:2]


def test_ident_confirms_the_user_of_version_4(lab: Lab, ident_gateway: Gateway, oidentd: None) -> None:
    """We run as root, and say so."""
    assert ask4(lab, b"root") == b"\0\x5a"
    ident_gateway.wait_for_log("event=flow.open .*user=root")
    assert ask4(lab, b"root", host=ROUTER_IN6) == b"\0\x5a"  # from another address family


def test_ident_names_another_user(lab: Lab, ident_gateway: Gateway, oidentd: None) -> None:
    assert ask4(lab, b"ann") == b"\0\x5d"
    ident_gateway.wait_for_log("event=auth.failed address=192.168.56.10 .*method=ident user=ann")


def test_nobody_answers_for_the_user(lab: Lab, ident_gateway: Gateway) -> None:
    assert ask4(lab, b"root", role="client2") == b"\0\x5c"


def test_an_ident_server_that_says_nothing_costs_its_deadline(lab: Lab, ident_gateway: Gateway) -> None:
    with lab.listen("client2", "0.0.0.0", 113):
        began = time.monotonic()
        assert ask4(lab, b"root", role="client2") == b"\0\x5c"
        assert 0.9 < time.monotonic() - began < 3


def test_an_ident_server_that_floods_is_not_listened_to(lab: Lab, ident_gateway: Gateway) -> None:
    with lab.listen("client2", "0.0.0.0", 113) as listener:

        def flood() -> None:
            sock, _ = listener.accept()
            try:
                while True:
                    sock.sendall(b"x" * 4096)
            except OSError:
                sock.close()

        thread = threading.Thread(target=flood)
        thread.start()
        assert ask4(lab, b"root", role="client2") == b"\0\x5c"
        thread.join(5)
        assert not thread.is_alive()


def test_ident_names_the_user_of_version_5(lab: Lab, ident_gateway: Gateway, oidentd: None) -> None:
    seen = len(ident_gateway.log_lines())
    done = lab.run("inside", ["curl", "-sS", "-m", "9", "--socks5", f"{ROUTER_IN4}:1090", URL])
    assert done.stdout == "hi\n"
    ident_gateway.wait_for_log("event=flow.open .*user=root", after=seen)


def test_version_5_without_an_ident_server_has_no_method(lab: Lab, ident_gateway: Gateway) -> None:
    with lab.connect("client2", ROUTER_IN4, 1090) as client:
        client.sendall(b"\5\1\0")
        assert receive(client, 2) == b"\5\xff"
