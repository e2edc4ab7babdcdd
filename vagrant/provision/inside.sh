#!/bin/sh
# The client: 192.168.56.10. It knows nothing of the gateway; its way to the outside is the router.
set -eu
. /tmp/algate/common.sh

packages curl lftp tnftp sip-tester dante-client netcat-openbsd python3 openssh-client vsftpd

address6 "$(link 192.168.56.10)" fd00:56::10/64 "203.0.113.0/24 via 192.168.56.2" "2001:db8:113::/64 via fd00:56::2"

# Its key to the other machines, and what scenarios need to know about this lab.
install -m 700 -o vagrant -g vagrant -d /home/vagrant/.ssh
install -m 600 -o vagrant -g vagrant /tmp/algate/lab/key /home/vagrant/.ssh/lab
ftp_server
sip_files

cat >/etc/profile.d/lab.sh <<'P'
export ROUTER="ssh -q -i $HOME/.ssh/lab -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null vagrant@192.168.56.2 sudo"
export OUTSIDER="ssh -q -i $HOME/.ssh/lab -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null vagrant@203.0.113.10"
export CALL_MS=40000 ALGATE=/usr/local/bin/algate CONFIG=/etc/algate/algate.toml SOCKS=192.168.56.2:1080
P

scenarios

rm -rf /tmp/algate
