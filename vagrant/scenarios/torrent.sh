#!/bin/sh
# A BitTorrent client behind the router announces itself to a tracker outside, and is reached by a peer there.
# Run on the inside client. OUTSIDER: a prefix that runs a command outside; OUTSIDE: the tracker.
# The gateway needs [alg.bittorrent] mode = "rewrite": it is off by default.
set -eu
export OUTSIDE="${OUTSIDE:-203.0.113.10}"
: "${OUTSIDER:?how to run a command outside}"

work=$(mktemp -d)
trap 'kill "$tracker" 2>/dev/null || true; rm -rf "$work"' EXIT

cat >"$work/tracker.py" <<'P'
import re, socket, sys
listener = socket.create_server(("", 6969))
listener.settimeout(30)
connection, (client, _) = listener.accept()
head = b""
while not head.endswith(b"\r\n\r\n"):
    head += connection.recv(4096)
port = int(re.search(rb"[?&]port=(\d+)", head)[1])
print(f"the tracker reads port={port} of {client}", file=sys.stderr, flush=True)
body = b"d8:intervali1800e5:peers0:e"
connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
hello = b"\x13BitTorrent protocol" + bytes(8) + b"h" * 20 + b"-XX0001-abcdefghijkl"
with socket.create_connection((client, port), 10) as peer:
    peer.sendall(hello)
    assert peer.recv(20) == hello[:20]
P
$OUTSIDER python3 - <"$work/tracker.py" 2>"$work/said" &
tracker=$!

python3 - <<'P'
import os, socket, sys, threading, time
peers = []
listener = socket.create_server(("", 0))
port = listener.getsockname()[1]

def serve():
    while True:
        connection, (host, _) = listener.accept()
        hello = b""
        while len(hello) < 68:
            hello += connection.recv(68)
        connection.sendall(hello)
        peers.append(host)

threading.Thread(target=serve, daemon=True).start()
for attempt in range(50):
    try:
        tracker = socket.create_connection((os.environ["OUTSIDE"], 6969), 5)
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("FAILED: no tracker")
query = f"info_hash={'h' * 20}&peer_id=-XX0001-123456789012&port={port}&left=0"
tracker.sendall(f"GET /announce?{query} HTTP/1.1\r\nHost: tracker\r\n\r\n".encode())
print(f"1. A client inside announces that it listens at port {port}.")
assert b"interval" in tracker.recv(4096)
end = time.monotonic() + 15
while len(peers) < 2 and time.monotonic() < end:
    time.sleep(0.05)
if len(peers) < 2:
    sys.exit(f"FAILED: it was reached by {peers} only (is alg.bittorrent on?)")
print(f"2. {peers[0]} has asked whether a client listens there, and then {peers[1]} has connected.")
P
echo "3. $(cat "$work/said"), and reached it there."
echo "OK: BitTorrent works."
