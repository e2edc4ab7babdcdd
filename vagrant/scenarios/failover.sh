#!/bin/sh
# A worker and the broker are killed in the middle of a transfer: the data goes on, in the kernel; the next session works at once.
# Run on the inside client. ROUTER: a prefix that runs a command on the router as root; ALGATE, CONFIG: the command and its
# configuration there; OUTSIDE: the FTP server.
set -eu
OUTSIDE=${OUTSIDE:-203.0.113.10}
FILE=${FILE:-pub/example.bin}
CONFIG=${CONFIG:-/etc/algate/algate.toml}
: "${ROUTER:?how to run a command on the router}" "${ALGATE:=algate}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

pids() {
    $ROUTER "$ALGATE" status --json -c "$CONFIG" | python3 -c '
import json, sys
print(*sorted(row["pid"] for row in json.load(sys.stdin) if row["process"] != "supervisor"))'
}

curl -sS --max-time 60 -o "$work/whole" "ftp://$OUTSIDE/$FILE" || fail "fetching $FILE"
size=$(wc -c <"$work/whole")

echo "1. An active transfer of $size bytes begins, slowly."
curl -sS --ftp-port - --disable-eprt --limit-rate $((size / 8)) --max-time 90 -o "$work/part" "ftp://$OUTSIDE/$FILE" 2>"$work/said" &
transfer=$!
tries=0
until [ -s "$work/part" ]; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || fail "no byte came: $(cat "$work/said")"
    sleep 0.1
done

before=$(pids)
echo "2. kill -9 of all processes but the supervisor: $before"
# shellcheck disable=SC2086
$ROUTER kill -9 $before

echo "3. Others have taken their place:"
tries=0
until after=$(pids 2>/dev/null) && [ "$after" != "$before" ] && [ "$(echo "$after" | wc -w)" = "$(echo "$before" | wc -w)" ]; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || fail "they were not replaced: $after"
    sleep 0.1
done
echo "   $after"

echo "4. The transfer goes on to its end, though its control connection died with the worker."
wait $transfer || echo "   curl says: $(cat "$work/said")"
cmp "$work/whole" "$work/part" || fail "$(wc -c <"$work/part") of $size bytes came"

echo "5. A new session works."
curl -sS --ftp-port - --disable-eprt --max-time 60 -o "$work/again" "ftp://$OUTSIDE/$FILE" || fail "a new transfer"
cmp "$work/whole" "$work/again" || fail "the new transfer differs"
echo "OK: nothing was lost that need not be."
