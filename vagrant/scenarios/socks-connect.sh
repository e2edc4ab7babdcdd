#!/bin/sh
# A configured client reaches a web server outside through SOCKS 4, 4a and 5.
# Run on the inside client. SOCKS: the gateway; OUTSIDE: the web server; NAME: a name that it has in the router's DNS.
set -eu
SOCKS=${SOCKS:-192.168.56.2:1080}
OUTSIDE=${OUTSIDE:-203.0.113.10}
NAME=${NAME:-www.example}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

for how in "--socks4 $SOCKS http://$OUTSIDE/" "--socks4a $SOCKS http://$NAME/" "--socks5 $SOCKS http://$OUTSIDE/" \
    "--socks5-hostname $SOCKS http://$NAME/"; do
    # shellcheck disable=SC2086
    said=$(curl -sS --max-time 20 $how) || fail "curl $how"
    echo "curl $how: $said"
    [ "$said" = "hello from outside" ] || fail "not what the server says"
done

echo "A target that is nobody's business is refused:"
if said=$(curl -sS --max-time 20 --socks5 "$SOCKS" http://127.0.0.1:9180/ 2>&1); then
    fail "the gateway's own loopback was reached"
fi
echo "   $said"
echo "OK: SOCKS 4, 4a and 5, by address and by name."
