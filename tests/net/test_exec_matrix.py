"""Programs of all kinds through `algate exec`, by both engines, as root and not; to addresses of both families and to
names of both. A sniffer sees nothing of them beside the proxy's own connection and its relay of datagrams."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.certificates import Authority
from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, SERVER6, Lab
from tests.lab.servers import _listens
from tests.lab.sshd import sshd
from tests.net.exec_rig import NAME, NAME6, gateway_before_servers, run, sniffer, static_program

NOBODY = 65534
TLS, SSH = 8443, 2222
RELAY = (ROUTER_IN4, 17)  # where datagrams may go: the proxy's relay
HOSTS = (SERVER4, SERVER6, NAME, NAME6)
ADDRESSES, NAMES = HOSTS[:2], HOSTS[2:]

ASYNCIO = """
import asyncio, sys
async def get(host):
    reader, writer = await asyncio.open_connection(host, 8080)
    writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    return await reader.read()
async def main():
    for answer in await asyncio.gather(*(get(sys.argv[1]) for _ in range(20))):
        assert answer.endswith(b"hello\\n"), answer
asyncio.run(main())
print("hello")
"""
THREADS = """
import http.client, sys
from concurrent.futures import ThreadPoolExecutor
def get(number):
    connection = http.client.HTTPConnection(sys.argv[1], 8080, timeout=20)
    connection.request("GET", "/")
    return connection.getresponse().read()
with ThreadPoolExecutor(20) as pool:
    assert set(pool.map(get, range(40))) == {b"hello\\n"}
print("hello")
"""
NODE = "fetch('http://' + process.argv[1] + ':8080/').then(r => r.text()).then(t => process.stdout.write(t))"
BASH = "exec 3<>/dev/tcp/$1/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
MUSL = r"""
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int count, char **words) {
    struct addrinfo *found, hints = {.ai_socktype = SOCK_STREAM};
    char answer[4096], *text = "GET / HTTP/1.0\r\n\r\n";
    int code = getaddrinfo(words[1], "8080", &hints, &found);
    if (code) return fprintf(stderr, "%s\n", gai_strerror(code)), 1;
    int sock = socket(found->ai_family, SOCK_STREAM, 0);
    if (connect(sock, found->ai_addr, found->ai_addrlen)) return perror("connect"), 1;
    write(sock, text, strlen(text));
    for (long got; (got = read(sock, answer, sizeof answer)) > 0;) write(1, answer, got);
    return 0;
}
"""
JAVA = """
import java.net.*;
public class Get {
    public static void main(String[] words) throws Exception {
        try (var in = new URL("http://" + words[0] + ":8080/").openStream()) { in.transferTo(System.out); }
    }
}
"""
RUST = """
use std::io::{Read, Write};
fn main() {
    let host = std::env::args().nth(1).unwrap();
    let mut stream = std::net::TcpStream::connect((host.as_str(), 8080)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\\r\\n\\r\\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    print!("{answer}");
}
"""
HTTPS = """
import http.server, ssl, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = 10
class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *words):
        super().__init__(*words, directory=sys.argv[3])
server = Server(("::", int(sys.argv[1])), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    yield from gateway_before_servers(lab)


@pytest.fixture(scope="module")
def programs(lab: Lab, gateway: Gateway) -> Iterator[dict[str, str]]:
    """Shell commands by the names of their programs: "$1" is a host, "$2" the same for a URL. Programs that are not
    here are not in it."""
    authority = Authority(lab.tmp)
    certificate = authority.issue("web", hosts=HOSTS)
    site = lab.tmp / "site"
    repository = site / "repository.git"
    subprocess.run(["git", "init", "-q", "--bare", repository], check=True)
    subprocess.run(["git", "-C", repository, "update-server-info"], check=True)
    https = lab.popen("outside", [sys.executable, "-c", HTTPS, str(TLS), certificate, site])
    lab.wait_for(lambda: _listens(https, TLS), 20, "the server inside TLS")
    server, ssh = sshd(lab, SSH, HOSTS, NOBODY)
    (lab.tmp / "Get.java").write_text(JAVA)
    made = {
        "curl": 'curl -sS -m 30 "http://$2:8080/"',
        "curl-https": f'curl -sS -m 30 --cacert {authority.file} "https://$2:{TLS}/"',
        "wget": 'wget -qO- -T 30 "http://$2:8080/"',
        "git": f'GIT_SSL_CAINFO={authority.file} HOME=/ git ls-remote "https://$2:{TLS}/repository.git" && echo hello',
        "ssh": f'{" ".join(map(str, ssh))} "root@$1" "echo hello"',
        "bash": 'bash -c "$BASH_GET" bash "$1"',
        "python-asyncio": f'{sys.executable} -c "$ASYNCIO_GET" "$1"',
        "python-threads": f'{sys.executable} -c "$THREADS_GET" "$1"',
        "node": 'node -e "$NODE_GET" "$2"',
        "java": f'java -Xint -cp / {lab.tmp}/Get.java "$2"',
        "gron": 'gron "http://$2:8080/hello.json"',
        "static": f'{static_program(lab)} "$1"',
    }
    for name, compiler, source, suffix in (("musl", "musl-gcc", MUSL, "c"), ("rust", "rustc", RUST, "rs")):
        if shutil.which(compiler):
            (lab.tmp / f"{name}.{suffix}").write_text(source)
            flags = ["-static", "-w"] if name == "musl" else ["-O"]
            argv: list[str | Path] = [compiler, *flags, "-o", lab.tmp / name, lab.tmp / f"{name}.{suffix}"]
            subprocess.run(argv, check=True, capture_output=True)
            made[name] = f'{lab.tmp / name} "$1"'
    yield {name: text for name, text in made.items() if name in ("static", "musl", "rust") or _is_here(text)}
    lab.stop(server)
    lab.stop(https)


def _is_here(command: str) -> bool:
    words = [word for word in command.split() if "=" not in word]
    return shutil.which(words[0]) is not None


# What cannot work, and why.
PROGRAMS = {
    "curl": HOSTS,
    "curl-https": HOSTS,
    "wget": HOSTS,
    "git": HOSTS,
    "ssh": HOSTS,
    "bash": HOSTS,
    "python-asyncio": HOSTS,
    "python-threads": HOSTS,
    "node": HOSTS,
    "java": HOSTS,
    "rust": HOSTS,
    "gron": HOSTS,  # written in Go: no C library takes part in its connections
    "musl": HOSTS,
    "static": ADDRESSES,  # it has no resolver
}
WAYS = {
    "namespace-root": ("namespace", False),
    "namespace-user": ("namespace", True),
    "seccomp-user": ("seccomp", True),
}
AS_ROOT = ("curl", "ssh", "python-asyncio")  # the namespace is the same; the rest of them says nothing new
# musl asks for names by sockets that are not connected, which this engine refuses, and says so.
REFUSED = {("musl", "seccomp"): NAMES}
EACH = """
for host in "$@"; do
    case $host in *:*) url="[$host]";; *) url=$host;; esac
    echo "$host: $(sh -c "$GET" sh "$host" "$url" | tail -1)"
done
"""


@pytest.mark.parametrize(
    ("program", "way"),
    [(program, way) for program in PROGRAMS for way in WAYS if program in AS_ROOT or way != "namespace-root"],
)
def test_a_program_and_its_hosts(
    lab: Lab, programs: dict[str, str], program: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if program not in programs:
        pytest.skip(f"{program} is not here")
    engine, user = WAYS[way]
    hosts = PROGRAMS[program]
    refused = REFUSED.get((program, engine), ())
    texts = {
        "GET": programs[program],
        "BASH_GET": BASH,
        "ASYNCIO_GET": ASYNCIO,
        "THREADS_GET": THREADS,
        "NODE_GET": NODE,
    }
    for name, text in texts.items():
        monkeypatch.setenv(name, text)
    with sniffer(lab) as beside:
        done = run(lab, "sh", "-c", EACH, "sh", *hosts, user=user, engine=engine, timeout=100)
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert {host for host in hosts if "hello" in said[host]} == set(hosts) - set(refused), done.stdout + done.stderr
    assert bool(refused) == ("not connected are refused" in done.stderr)
    assert not beside, "something went past the proxy"


DIG = """
dig +short {name} A
dig +short {name6} AAAA
dig +tcp +short {name} A
dig +short @{server} {name} A
"""


@pytest.mark.parametrize("way", WAYS)
def test_dig(lab: Lab, gateway: Gateway, way: str) -> None:
    """By the name server of the namespace, over UDP and TCP; and by one that it is told to ask."""
    if shutil.which("dig") is None:
        pytest.skip("dig is not installed")
    engine, user = WAYS[way]
    with sniffer(lab) as beside:
        text = DIG.format(name=NAME, name6=NAME6, server=SERVER4)
        done = run(lab, "sh", "-c", text, user=user, engine=engine)
    assert done.stdout.splitlines() == [SERVER4, SERVER6, SERVER4, SERVER4], done.stderr
    assert beside <= {RELAY}


def test_the_programs_of_this_machine(programs: dict[str, str]) -> None:
    """Those that every machine of the tests has are not skipped by mistake."""
    everywhere = "curl curl-https wget git ssh bash python-asyncio python-threads static"
    assert set(everywhere.split()) <= set(programs)


def test_the_sniffer_sees_what_goes_past(lab: Lab, gateway: Gateway) -> None:
    """What the others rely on."""
    with sniffer(lab) as beside:
        lab.run("inside", ["curl", "-sS", "-m", "5", f"http://{SERVER4}:8080/"], check=False)
        lab.run("inside", ["curl", "-sS", "-m", "5", f"http://[{SERVER6}]:8080/"], check=False)
    assert {(SERVER4, 6), (SERVER6, 6)} <= beside
    assert os.geteuid() == 0
