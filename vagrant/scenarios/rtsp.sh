#!/bin/sh
# A player behind the router asks a camera outside for pictures over UDP (RTSP): they come to a port that no NAT expects.
# Run on the inside client. OUTSIDER: a prefix that runs a command outside; OUTSIDE: the camera.
set -eu
export OUTSIDE="${OUTSIDE:-203.0.113.10}"
: "${OUTSIDER:?how to run a command outside}"

work=$(mktemp -d)
trap 'kill "$camera" 2>/dev/null || true; rm -rf "$work"' EXIT

cat >"$work/camera.py" <<'P'
import re, socket, sys
listener = socket.create_server(("", 8554))
listener.settimeout(30)
connection, (viewer, _) = listener.accept()
said = connection.makefile("rb")
port = 0
while True:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = said.readline()
        if not line:
            sys.exit()
        head += line
    cseq = re.search(rb"CSeq: (\d+)", head)[1].decode()
    more = ""
    if head.startswith(b"SETUP"):
        port = int(re.search(rb"client_port=(\d+)", head)[1])
        print(f"the camera reads client_port={port}", file=sys.stderr, flush=True)
        more = f"Transport: RTP/AVP;unicast;client_port={port}-{port + 1};server_port=6970-6971\r\n"
    connection.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\nSession: 7\r\n{more}\r\n".encode())
    if head.startswith(b"PLAY"):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for number in range(20):
            sender.sendto(b"picture %d" % number, (viewer, port))
P
$OUTSIDER python3 - <"$work/camera.py" 2>"$work/said" &
camera=$!
# The gateway accepts for a server that does not listen yet, and resets then.
for attempt in $(seq 50); do
    if $OUTSIDER ss -Hltn sport = :8554 | grep -q .; then break; fi
    sleep 0.1
done

python3 - <<'P'
import os, socket, sys, time
for attempt in range(50):
    try:
        camera = socket.create_connection((os.environ["OUTSIDE"], 8554), 5)
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("FAILED: no camera")
camera.settimeout(20)
answers = camera.makefile("rb")
media = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
media.bind(("", 0))
media.settimeout(20)
port = media.getsockname()[1]

def ask(method, number, more=""):
    camera.sendall(f"{method} rtsp://camera/1 RTSP/1.0\r\nCSeq: {number}\r\n{more}\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += answers.readline()
    return answer.decode()

answer = ask("SETUP", 1, f"Transport: RTP/AVP;unicast;client_port={port}-{port + 1}\r\n")
print(f"1. The player asks for pictures at its port {port}, and reads client_port={port} in the answer.")
assert f"client_port={port}-{port + 1}" in answer, answer
ask("PLAY", 2)
got = sorted({media.recv(100) for _ in range(20)})
assert len(got) == 20, got
print("2. Twenty pictures came in.")
ask("TEARDOWN", 3)
P
grep -q "reads client_port=" "$work/said" || { cat "$work/said"; echo "FAILED: the camera"; exit 1; }
echo "3. $(cat "$work/said"): a public one of the router."
echo "OK: RTSP over UDP works."
