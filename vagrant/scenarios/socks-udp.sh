#!/bin/sh
# A SOCKS client asks a name server outside by UDP: UDP ASSOCIATE.
# Run on the inside client. SOCKS: the gateway; OUTSIDE: the name server; NAME: a name that it knows.
set -eu
export SOCKS="${SOCKS:-192.168.56.2:1080}" OUTSIDE="${OUTSIDE:-203.0.113.10}" NAME="${NAME:-www.example}"

python3 - <<'P'
import os, socket, struct, sys

proxy, port = os.environ["SOCKS"].rsplit(":", 1)
outside, name = os.environ["OUTSIDE"], os.environ["NAME"]
control = socket.create_connection((proxy, int(port)), 20)
control.sendall(b"\5\1\0")
assert control.recv(2) == b"\5\0"
control.sendall(b"\5\3\0\1" + bytes(6))
answer = control.recv(10)
if answer[1] != 0:
    sys.exit(f"FAILED: the gateway refuses with code {answer[1]}")
relay = (socket.inet_ntoa(answer[4:8]), struct.unpack("!H", answer[8:10])[0])
print(f"1. The gateway relays datagrams at {relay[0]}:{relay[1]}.")

question = b"\x12\x34\1\0\0\1\0\0\0\0\0\0"
question += b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\1\0\1"
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(5)
for attempt in range(3):
    udp.sendto(b"\0\0\0\1" + socket.inet_aton(outside) + struct.pack("!H", 53) + question, relay)
    try:
        datagram, source = udp.recvfrom(2048)
        break
    except TimeoutError:
        print("   no answer, once more")
else:
    sys.exit("FAILED: no answer")
assert source == relay and datagram[:4] == b"\0\0\0\1" and datagram[4:8] == socket.inet_aton(outside)
address = socket.inet_ntoa(datagram[-4:])
print(f"2. {name} is {address}, says {socket.inet_ntoa(datagram[4:8])}.")
assert address == outside
control.close()
print("OK: UDP ASSOCIATE works.")
P
