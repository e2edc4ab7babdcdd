#!/bin/sh
# A phone behind the NAT is called from outside: its registration keeps its door open, for the registrar alone.
# Run on the inside client. OUTSIDER, ROUTER, SIPP_FILES: as for sip-call.
set -eu
INSIDE=${INSIDE:-192.168.56.10}
OUTSIDE=${OUTSIDE:-203.0.113.10}
SIPP_FILES=${SIPP_FILES:-/opt/sip}
: "${OUTSIDER:?how to run a command outside}" "${ROUTER:?how to run a command on the router}" "${ALGATE:=algate}"
CONFIG=${CONFIG:-/etc/algate/algate.toml}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

phone() { # phone WHERE-PREFIX FILE ADDRESS:PORT FURTHER-ARGUMENTS
    prefix=$1 file=$2 local=$3
    shift 3
    $prefix env TERM=dumb sipp -sf "$SIPP_FILES/$file.xml" -i "${local%:*}" -p "${local#*:}" -m 1 -nostdin -nd -timeout 180 \
        -timeout_error -recv_timeout 120000 "$@" </dev/null
}

echo "1. ann registers, from inside, with her inside address in Contact."
phone "" register "$INSIDE:5060" -s ann "$OUTSIDE:5060" >"$work/ann" 2>&1 || fail "ann: $(tail -3 "$work/ann")"
$ROUTER "$ALGATE" pinholes -c "$CONFIG" | cut -c1-150 | sed 's/^/   /'

echo "2. Somebody outside calls ann."
phone "" uas "$INSIDE:5060" -key audio 9000 -trace_msg -message_file "$work/messages" >"$work/callee" 2>&1 &
callee=$!
tries=0
until grep -qi ":13C4 " /proc/net/udp; do # 5060 in hexadecimal
    tries=$((tries + 1))
    [ $tries -lt 100 ] || fail "the phone does not listen"
    sleep 0.1
done
phone "$OUTSIDER" uac "$OUTSIDE:5071" -s ann -d 500 -key audio 9100 "$OUTSIDE:5060" >"$work/caller" 2>&1 ||
    fail "caller: $(tail -5 "$work/caller")"
wait $callee || fail "callee: $(tail -5 "$work/callee")"

echo "3. The INVITE that the phone got is addressed to the Contact that it had registered:"
grep -m1 "^INVITE" "$work/messages" | tr -d '\r' | sed 's/^/   /'
grep -m1 "^INVITE" "$work/messages" | grep -q "sip:ann@$INSIDE:5060" || fail "the phone saw another address"
echo "OK: the phone was reached."
