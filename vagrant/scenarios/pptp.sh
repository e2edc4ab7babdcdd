#!/bin/sh
# An old VPN: a client behind the router dials a PPTP server outside, and the tunnel (GRE, which has no ports) comes
# back to it. Both ends are played here, up to the first packets of the tunnel: no PPP is needed.
# Run on the inside client. OUTSIDER: a prefix that runs a command outside; OUTSIDE: the server.
set -eu
export OUTSIDE="${OUTSIDE:-203.0.113.10}"
: "${OUTSIDER:?how to run a command outside}"
root=
[ "$(id -u)" = 0 ] || root=sudo # for GRE

work=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

cat >"$work/server.py" <<'P'
import socket, struct, sys
listener = socket.create_server(("", 1723))
listener.settimeout(30)
tunnel = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE)
tunnel.settimeout(30)
print("listening", file=sys.stderr, flush=True)
control, (client, _) = listener.accept()
said = control.makefile("rb")
def message(kind, body, length):
    return struct.pack(">HHIHH", length, 1, 0x1A2B3C4D, kind, 0) + body.ljust(length - 12, b"\0")
said.read(156)
control.sendall(message(2, struct.pack(">HBBIIHH", 0x100, 1, 0, 1, 1, 1, 1), 156))
number, = struct.unpack_from(">H", said.read(168), 12)
print(f"the server reads call ID {number} from {client}", file=sys.stderr, flush=True)
control.sendall(message(8, struct.pack(">HHBBHIHHI", 40, number, 1, 0, 0, 10**8, 64, 0, 0), 32))
while True:
    packet, (source, _) = tunnel.recvfrom(2000)
    packet = packet[4 * (packet[0] & 15):]
    if struct.unpack_from(">H", packet, 6)[0] == 40 and source == client:
        text = b"heard: " + packet[8:]
        tunnel.sendto(struct.pack(">BBHHH", 0x20, 1, 0x880B, len(text), number) + text, (client, 0))
P
$OUTSIDER $root python3 - <"$work/server.py" 2>"$work/said" &
server=$!
# The gateway accepts for a server that does not listen yet, and resets then.
for attempt in $(seq 50); do
    if $OUTSIDER ss -Hltn sport = :1723 | grep -q .; then break; fi
    sleep 0.1
done

cat >"$work/client.py" <<'P'
import os, socket, struct, sys, time
host = os.environ.get("OUTSIDE") or sys.argv[1]
for attempt in range(50):
    try:
        control = socket.create_connection((host, 1723), 5)
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("FAILED: no server")
control.settimeout(20)
said = control.makefile("rb")
tunnel = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE)
tunnel.settimeout(2)
def message(kind, body, length):
    return struct.pack(">HHIHH", length, 1, 0x1A2B3C4D, kind, 0) + body.ljust(length - 12, b"\0")
print(f"1. The client begins a control connection with {host}:1723, and asks for a call with its call ID 7.")
control.sendall(message(1, struct.pack(">HHIIHH", 0x100, 0, 1, 1, 0, 1), 156))
if len(said.read(156)) < 156:
    sys.exit("FAILED: the server has hung up")
control.sendall(message(7, struct.pack(">HHIIIIHHHH", 7, 1, 2400, 10**9, 3, 3, 64, 0, 0, 0), 168))
server, own = struct.unpack_from(">HH", said.read(32), 12)
if own != 7:
    sys.exit(f"FAILED: the answer is for call {own}")
print(f"2. The call is up: the server's call ID is {server}. The client sends through the tunnel.")
for attempt in range(3):
    tunnel.sendto(struct.pack(">BBHHH", 0x20, 1, 0x880B, 5, server) + b"hello", (host, 0))
    try:
        packet = tunnel.recv(2000)
    except TimeoutError:
        continue
    packet = packet[4 * (packet[0] & 15):]
    if packet[8:] != b"heard: hello" or struct.unpack_from(">H", packet, 6)[0] != 7:
        sys.exit(f"FAILED: {packet!r} came")
    print("3. What the server sends comes back, with the client's own call ID.")
    break
else:
    sys.exit("FAILED: nothing comes back through the tunnel")
P
$root python3 "$work/client.py" "$OUTSIDE"
sed 's/^/   /' "$work/said"
echo "OK: the tunnel of PPTP works both ways."
