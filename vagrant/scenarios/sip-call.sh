#!/bin/sh
# A phone behind the NAT calls somebody outside, through a registrar that does nothing about NAT; both hear each other.
# Run on the inside client. OUTSIDER: a prefix that runs a command outside; SIPP_FILES: SIPp's scenario files, at both ends.
set -eu
export INSIDE="${INSIDE:-192.168.56.10}" OUTSIDE="${OUTSIDE:-203.0.113.10}" AUDIO=9000 FAR_AUDIO=9100
SIPP_FILES=${SIPP_FILES:-/opt/sip}
: "${OUTSIDER:?how to run a command outside}" "${ROUTER:?how to run a command on the router}" "${ALGATE:=algate}"
CONFIG=${CONFIG:-/etc/algate/algate.toml}
export TERM=dumb

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

echo "1. bob registers, outside; ann registers, from inside."
phone "$OUTSIDER" register "$OUTSIDE:5070" -s bob "$OUTSIDE:5060" >"$work/bob" 2>&1 || fail "bob: $(tail -3 "$work/bob")"
phone "" register "$INSIDE:5060" -s ann "$OUTSIDE:5060" >"$work/ann" 2>&1 || fail "ann: $(tail -3 "$work/ann")"

echo "2. ann calls bob, who echoes what he hears."
phone "$OUTSIDER" uas "$OUTSIDE:5070" -key audio $FAR_AUDIO -mi "$OUTSIDE" -mp $FAR_AUDIO -rtp_echo >"$work/callee" 2>&1 &
callee=$!
phone "" uac "$INSIDE:5060" -s bob -d "${CALL_MS:-6000}" -key audio $AUDIO "$OUTSIDE:5060" >"$work/caller" 2>&1 &
caller=$!
tries=0
until $ROUTER "$ALGATE" calls --json -c "$CONFIG" | grep -q confirmed; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || fail "no call: $(tail -5 "$work/caller")"
    sleep 0.1
done

echo "3. Media: 100 packets of RTP, and what comes back."
python3 - <<'P' || fail "no media"
import os, socket, sys, time

sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((os.environ["INSIDE"], int(os.environ["AUDIO"])))
sock.setblocking(False)
heard = 0
for number in range(100):
    sock.sendto(b"\x80\0" + number.to_bytes(2, "big") + bytes(168), (os.environ["OUTSIDE"], int(os.environ["FAR_AUDIO"])))
    time.sleep(0.02)  # the pace of telephone audio
    try:
        while sock.recv(2048):
            heard += 1
    except BlockingIOError:
        pass
print(f"   sent 100, heard {heard}")
sys.exit(heard < 90)
P
echo "4. What the router says of it:"
$ROUTER "$ALGATE" calls -c "$CONFIG" | cut -c1-150 | sed 's/^/   /'

wait $caller || fail "caller: $(tail -5 "$work/caller")"
wait $callee || fail "callee: $(tail -5 "$work/callee")"
$ROUTER "$ALGATE" calls --json -c "$CONFIG" | grep -q '"call_id"' && fail "the call is still known"
echo "OK: the call was set up, heard and ended."
