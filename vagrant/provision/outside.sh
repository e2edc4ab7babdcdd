#!/bin/sh
# Outside: 203.0.113.10. Servers of FTP, HTTP, DNS and TFTP, and a SIP registrar. It has no route to the inside.
set -eu
. /tmp/algate/common.sh

packages vsftpd curl dnsmasq-base kamailio sip-tester python3 openssh-server

outside=$(link 203.0.113.10)
address6 "$outside" 2001:db8:113::10/64

ftp_server
sip_files
lab_key

# Web.
install -d /srv/www
echo "hello from outside" >/srv/www/index.html

# TFTP.
install -d /srv/tftp
head -c 1000000 /dev/urandom >/srv/tftp/boot.bin
chmod 644 /srv/tftp/boot.bin

# SIP registrar and proxy.
install -m 644 /tmp/algate/files/kamailio.cfg /etc/kamailio/kamailio.cfg
for unit in web dns; do
    install -m 644 "/tmp/algate/files/lab-$unit.service" "/etc/systemd/system/lab-$unit.service"
done
systemctl daemon-reload
for unit in lab-web lab-dns kamailio; do
    systemctl enable -q "$unit"
    systemctl restart "$unit"
done

rm -rf /tmp/algate
