#!/bin/sh
# Passive FTP of a client that knows nothing of the gateway, behind a router that forwards nothing by itself.
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

echo "1. $INSIDE fetches $FILE from $OUTSIDE with PASV: the server names an address and port (227), the client connects."
curl -sS -v --user "$LOGIN" --ftp-pasv --disable-epsv --max-time 60 -o "$work/pasv" "ftp://$OUTSIDE/$FILE" 2>"$work/said" ||
    { cat "$work/said"; fail "PASV"; }
grep -e '^> PASV' -e '^< 227' "$work/said" | sed 's/^/   /'

echo "2. The same with EPSV: the server names a port only (229)."
curl -sS -v --user "$LOGIN" --ftp-pasv --max-time 60 -o "$work/epsv" "ftp://$OUTSIDE/$FILE" 2>"$work/said" ||
    { cat "$work/said"; fail "EPSV"; }
grep -e '^> EPSV' -e '^< 229' "$work/said" | sed 's/^/   /'
cmp "$work/pasv" "$work/epsv" || fail "the two differ"

echo "3. It stores a file and fetches it again."
curl -sS --user "$LOGIN" --ftp-pasv --max-time 60 -T "$work/pasv" "ftp://$OUTSIDE/$UPLOAD/passive.$$" || fail "upload"
curl -sS --user "$LOGIN" --ftp-pasv --max-time 60 -o "$work/back" "ftp://$OUTSIDE/$UPLOAD/passive.$$" || fail "fetching it"
cmp "$work/pasv" "$work/back" || fail "what came back differs"

echo "OK: passive FTP works, $(wc -c <"$work/pasv") bytes each way, all equal."
