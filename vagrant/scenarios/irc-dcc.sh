#!/bin/sh
# A user of IRC behind the router offers a file to one outside (DCC): that one connects to a port that no NAT expects.
# Run on the inside client. OUTSIDER: a prefix that runs a command outside; OUTSIDE: the IRC server.
set -eu
export OUTSIDE="${OUTSIDE:-203.0.113.10}"
: "${OUTSIDER:?how to run a command outside}"

work=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

cat >"$work/server.py" <<'P'
import ipaddress, re, socket, sys
listener = socket.create_server(("", 6667))
listener.settimeout(30)
connection, _ = listener.accept()
said = connection.makefile("rb")
said.readline()
connection.sendall(b":irc.example 001 ann :Welcome\r\n")
offer = said.readline()
found = re.search(rb"DCC SEND \S+ (\d+) (\d+) (\d+)", offer)
host, port, size = str(ipaddress.ip_address(int(found[1]))), int(found[2]), int(found[3])
print(f"the user outside reads {host}, port {port}", file=sys.stderr, flush=True)
data = b""
with socket.create_connection((host, port), 10) as taker:
    while more := taker.recv(65536):
        data += more
connection.sendall(b":bob PRIVMSG ann :got %d bytes\r\n" % len(data))
P
$OUTSIDER python3 - <"$work/server.py" 2>"$work/said" &
server=$!
# The gateway accepts for a server that does not listen yet, and resets then.
for attempt in $(seq 50); do
    if $OUTSIDER ss -Hltn sport = :6667 | grep -q .; then break; fi
    sleep 0.1
done

python3 - <<'P'
import ipaddress, os, socket, sys, time
for attempt in range(50):
    try:
        server = socket.create_connection((os.environ["OUTSIDE"], 6667), 5)
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("FAILED: no server")
server.settimeout(20)
said = server.makefile("rb")
server.sendall(b"NICK ann\r\n")
assert b" 001 " in said.readline()
own = server.getsockname()[0]
listener = socket.create_server((own, 0))
listener.settimeout(20)
port = listener.getsockname()[1]
file = os.urandom(100000)
server.sendall(f"PRIVMSG bob :\x01DCC SEND a.bin {int(ipaddress.ip_address(own))} {port} {len(file)}\x01\r\n".encode())
print(f"1. The user inside offers a file at {own}, port {port}.")
taker, _ = listener.accept()
taker.sendall(file)
taker.close()
answer = said.readline().decode()
assert f"got {len(file)} bytes" in answer, answer
print("2. It was fetched: " + answer.strip().rpartition(":")[2] + ".")
P
grep -q "user outside reads" "$work/said" || { cat "$work/said"; echo "FAILED: the user outside"; exit 1; }
echo "3. $(cat "$work/said"): public ones of the router."
echo "OK: DCC works."
