#!/bin/sh
# An FTP server *behind* the router, published at the router's outside address: active and passive clients outside just work.
# Run on the inside host that has the server. OUTSIDER: a prefix that runs a command outside; PUBLISHED: where it is published.
set -eu
PUBLISHED=${PUBLISHED:-203.0.113.2}
FILE=${FILE:-pub/example.bin}
: "${OUTSIDER:?how to run a command outside}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

curl -sS --max-time 60 -o "$work/here" "ftp://127.0.0.1/$FILE" || fail "the server does not answer here"

fetch() {
    name=$1
    shift
    echo "$name: somebody outside fetches $FILE from $PUBLISHED with $*"
    $OUTSIDER curl -sSv --max-time 60 "$@" "ftp://$PUBLISHED/$FILE" >"$work/there" 2>"$work/said" || { cat "$work/said"; fail "$name"; }
    grep -e '^< 22[79]' -e '^> PORT' "$work/said" | sed 's/^/   /' || true
    cmp "$work/here" "$work/there" || fail "$name: it differs"
}

fetch "1. passive, PASV" --disable-epsv
fetch "2. passive, EPSV" --ftp-pasv
fetch "3. active, PORT" --ftp-port - --disable-eprt
if grep -q '192[.,]168' "$work/said"; then fail "an inside address was seen outside"; fi
echo "OK: a published server works, $(wc -c <"$work/here") bytes each."
