#!/bin/sh
# Active FTP of a client that knows nothing of the gateway: the server opens the data connection, through the NAT.
# Run on the inside client. OUTSIDE: the FTP server; FILE: what to fetch there; UPLOAD: a directory that can be written to.
set -eu
INSIDE=${INSIDE:-192.168.56.10}
OUTSIDE=${OUTSIDE:-203.0.113.10}
FILE=${FILE:-pub/example.bin}
UPLOAD=${UPLOAD:-upload}
LOGIN=${LOGIN:-anonymous:guest}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

echo "1. $INSIDE fetches $FILE from $OUTSIDE in active mode."
echo "   It says PORT with its own inside address; the server must see the router's."
curl -sS -v --user "$LOGIN" --ftp-port - --disable-eprt --max-time 60 -o "$work/active" "ftp://$OUTSIDE/$FILE" 2>"$work/said" ||
    { cat "$work/said"; fail "active transfer (without a gateway one sees: 500 Illegal PORT command, or a timeout)"; }
grep -e '^> PORT' -e '^< 200' "$work/said" | sed 's/^/   /'

echo "2. The same file in passive mode, to compare."
curl -sS --user "$LOGIN" --ftp-pasv --disable-epsv --max-time 60 -o "$work/passive" "ftp://$OUTSIDE/$FILE" || fail "passive transfer"
cmp "$work/active" "$work/passive" || fail "the two differ"

echo "3. It stores a file, in active mode, and fetches it again."
curl -sS --user "$LOGIN" --ftp-port - --disable-eprt --max-time 60 -T "$work/active" "ftp://$OUTSIDE/$UPLOAD/active.$$" || fail "upload"
curl -sS --user "$LOGIN" --ftp-port - --disable-eprt --max-time 60 -o "$work/back" "ftp://$OUTSIDE/$UPLOAD/active.$$" || fail "fetching it"
cmp "$work/active" "$work/back" || fail "what came back differs"

echo "OK: active FTP works, $(wc -c <"$work/active") bytes each way, all equal."
