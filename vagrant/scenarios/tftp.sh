#!/bin/sh
# TFTP of a client that knows nothing of the gateway: the server answers from a port that no NAT expects.
# Run on the inside client. OUTSIDE: the TFTP server; BOOT: what to fetch there.
set -eu
OUTSIDE=${OUTSIDE:-203.0.113.10}
BOOT=${BOOT:-boot.bin}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

echo "1. The client fetches $BOOT from $OUTSIDE, in blocks of 512 bytes."
curl -sS --max-time 60 --tftp-no-options -o "$work/plain" "tftp://$OUTSIDE/$BOOT" || fail "fetching it"

echo "2. The same in blocks of 1428 bytes, with the options of a boot ROM."
curl -sS --max-time 60 --tftp-blksize 1428 -o "$work/large" "tftp://$OUTSIDE/$BOOT" || fail "fetching it with options"
cmp "$work/plain" "$work/large" || fail "the two differ"

echo "OK: TFTP works, $(wc -c <"$work/plain") bytes twice, all equal."
