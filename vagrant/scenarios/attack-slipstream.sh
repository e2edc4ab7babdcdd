#!/bin/sh
# NAT slipstreaming: a web page makes the browser POST text to a port of a protocol module, so that a line of that
# protocol begins a segment. A gullible gateway opens a pinhole to a port of the victim. This one must not.
# Run on the inside client. ROUTER, ALGATE, CONFIG: as for failover; OUTSIDE: the attacker's server.
set -eu
export OUTSIDE="${OUTSIDE:-203.0.113.10}" INSIDE="${INSIDE:-192.168.56.10}"
CONFIG=${CONFIG:-/etc/algate/algate.toml}
: "${ROUTER:?how to run a command on the router}" "${ALGATE:=algate}"

# The ids of what is open, a line each, sorted. (A phone that is registered has its door open, and may.)
pinholes() {
    $ROUTER "$ALGATE" pinholes --json -c "$CONFIG" | python3 -c '
import json, sys
print(*sorted(row["id"] for row in json.load(sys.stdin)), sep="\n")'
}
before=$(mktemp) && after=$(mktemp)
trap 'rm -f "$before" "$after"' EXIT
pinholes >"$before"

# Everything is sent from one connection each, which stays open until its standard input ends.
attack() {
    python3 -c '
import os, socket, sys, time
port, line = int(sys.argv[1]), sys.argv[2].encode().decode("unicode_escape").encode()
sock = socket.create_connection((os.environ["OUTSIDE"], port), 10)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
sock.sendall(b"POST / HTTP/1.1\r\nHost: attacker\r\nContent-Length: 5000\r\n\r\n" + b"a" * 1000)
time.sleep(0.3)  # so that the line begins a segment, as the padding of the attack does
sock.sendall(line)
print("sent", flush=True)
sys.stdin.read()
' "$@"
}

failed=0
try() {
    echo "A POST to port $1, and then a segment that begins with: $(printf %s "$2" | cut -c1-40)..."
    hold=$(mktemp -u)
    mkfifo "$hold"
    attack "$1" "$2" <"$hold" >"$hold.out" 2>&1 &
    attacker=$!
    exec 9>"$hold"
    tries=0
    until grep -q sent "$hold.out" || [ $tries -ge 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    grep -q sent "$hold.out" || cat "$hold.out"
    for _ in 1 2; do
        pinholes >"$after"
        new=$(comm -13 "$before" "$after")
        [ -z "$new" ] || { echo "FAILED: a pinhole was opened: $new" >&2; failed=1; break; }
        sleep 0.1
    done
    exec 9>&-
    wait $attacker || true
    rm -f "$hold" "$hold.out"
}

address=$(echo "$INSIDE" | tr . ,)
try 21 "PORT $address,200,10\r\n"
try 21 "EPRT |1|$INSIDE|51210|\r\n"
try 5060 "REGISTER sip:$OUTSIDE SIP/2.0\r\nVia: SIP/2.0/TCP $INSIDE:51210;branch=z9hG4bK1\r\nFrom: <sip:a@$OUTSIDE>;tag=1\r\nTo: <sip:a@$OUTSIDE>\r\nCall-ID: 1\r\nCSeq: 1 REGISTER\r\nContact: <sip:a@$INSIDE:51210;transport=tcp>\r\nExpires: 60\r\nContent-Length: 0\r\n\r\n"
[ $failed = 0 ] || exit 1
echo "OK: no pinhole, ever."
