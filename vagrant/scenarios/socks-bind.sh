#!/bin/sh
# A SOCKS client lets a server connect to it: BIND. The server is a real FTP server, in active mode.
# Run on the inside client. SOCKS: the gateway; OUTSIDE: the FTP server.
set -eu
export SOCKS="${SOCKS:-192.168.56.2:1080}" OUTSIDE="${OUTSIDE:-203.0.113.10}"

python3 - <<'P'
import os, socket, struct, sys

proxy, port = os.environ["SOCKS"].rsplit(":", 1)
outside = os.environ["OUTSIDE"]


def receive(sock, count):
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            sys.exit(f"FAILED: the gateway closed after {data!r}")
        data += chunk
    return data


def reply(sock):
    head = receive(sock, 10)
    if head[1] != 0:
        sys.exit(f"FAILED: the gateway refuses with code {head[1]}")
    return socket.inet_ntoa(head[4:8]), struct.unpack("!H", head[8:10])[0]


def ask(command, host, target):
    sock = socket.create_connection((proxy, int(port)), 20)
    sock.sendall(b"\5\1\0")
    assert receive(sock, 2) == b"\5\0"
    sock.sendall(bytes([5, command, 0, 1]) + socket.inet_aton(host) + struct.pack("!H", target))
    return sock, reply(sock)


control, _ = ask(1, outside, 21)
lines = control.makefile("rwb", 0)


def command(text=None):
    if text:
        lines.write(text.encode() + b"\r\n")
    while True:
        line = lines.readline().decode().strip()
        if line[3:4] == " ":
            return line


command()
command("USER anonymous")
print(command("PASS guest"))
bound, (host, at) = ask(2, outside, 20)
print(f"1. The gateway listens for {outside} at {host}:{at}, and says so before anybody is told.")
print("2. The server is told:", command(f"PORT {host.replace('.', ',')},{at >> 8},{at & 255}"))
print("3. The server begins:", command("LIST pub"))
peer = reply(bound)
print(f"4. The second reply names who came: {peer[0]}:{peer[1]}.")
listing = b""
while chunk := bound.recv(4096):
    listing += chunk
print("5. Through the bound connection came:", listing.decode().strip())
print("6.", command())
assert peer[0] == outside and b"example.bin" in listing
print("OK: BIND works.")
P
