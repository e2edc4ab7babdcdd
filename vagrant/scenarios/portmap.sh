#!/bin/sh
# A client asks the router for a public port, as consoles and torrent clients do, and somebody outside reaches it there.
# Run on the inside client. GATEWAY: the router's inside address; OUTSIDER: a prefix that runs a command outside.
set -eu
GATEWAY=${GATEWAY:-192.168.56.2}
INSIDE=${INSIDE:-192.168.56.10}
PORT=${PORT:-51413}
: "${OUTSIDER:?how to run a command outside}"

work=$(mktemp -d)
server=
trap 'rm -rf "$work"; [ -z "$server" ] || kill "$server" 2>/dev/null' EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# PCP, MAP: nonce 12 bytes, TCP, inside port, wished port, any address. Prints result, lifetime, port and address.
ask() {
    python3 - "$GATEWAY" "$INSIDE" "$PORT" "$1" <<'END'
import ipaddress, socket, struct, sys
gateway, own, port, lifetime = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
mapped = lambda host: bytes(10) + b"\xff\xff" + ipaddress.IPv4Address(host).packed
head = struct.pack("!BBHI16s", 2, 1, 0, lifetime, mapped(own))
body = struct.pack("!12sB3sHH16s", b"a nonce of 12", 6, b"", port, port, mapped("0.0.0.0"))
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((own, 0))
sock.settimeout(2)
for _ in range(3):
    sock.sendto(head + body, (gateway, 5351))
    try:
        answer = sock.recv(1100)
        break
    except TimeoutError:
        continue
else:
    sys.exit("no answer")
_, _, _, result, lifetime = struct.unpack_from("!BBBBI", answer)
print(result, lifetime, *struct.unpack_from("!H", answer, 42), ipaddress.IPv4Address(answer[56:60]))
END
}

echo "1. The client asks $GATEWAY for public port $PORT (PCP)."
said=$(ask 600) || fail "$said"
set -- $said
[ "$1" = 0 ] || fail "result $1"
public=$3 address=$4
echo "   $address:$public leads here, for $2 s"

echo "2. Somebody outside fetches a file there."
echo hello >"$work/hello"
python3 -m http.server "$PORT" --bind "$INSIDE" --directory "$work" >/dev/null 2>&1 &
server=$!
got=
for _ in 1 2 3 4 5 6 7 8 9 10; do
    got=$($OUTSIDER curl -sS --max-time 5 "http://$address:$public/hello" 2>/dev/null) && break
    sleep 0.5
done
[ "$got" = hello ] || fail "got '$got' from outside"

echo "3. The client ends the mapping, and the port is shut."
ask 0 >/dev/null || fail "ending it"
if $OUTSIDER curl -sS --max-time 2 "http://$address:$public/hello" >/dev/null 2>&1; then fail "it is open still"; fi

echo "OK: $address:$public led to this client, and does no more."
