#!/bin/sh
# The router: 192.168.56.2 inside, 203.0.113.2 outside. NAT as a home router has it, and algate as a service.
set -eu
. /tmp/algate/common.sh

packages python3 python3-venv iptables nftables conntrack procps util-linux openssh-server

inside=$(link 192.168.56.2)
outside=$(link 203.0.113.2)
address6 "$inside" fd00:56::2/64
address6 "$outside" 2001:db8:113::2/64

cat >/etc/sysctl.d/50-router.conf <<'S'
net.ipv4.ip_forward = 1
net.ipv6.conf.all.forwarding = 1
net.netfilter.nf_conntrack_acct = 1
S
modprobe nf_conntrack
sysctl -q --system

# Its own firewall: forward what comes from inside and what belongs to it, drop the rest; masquerade.
cat >/usr/local/sbin/router-firewall <<F
#!/bin/sh
set -eu
for tables in iptables ip6tables; do
    \$tables -w -P FORWARD DROP
    \$tables -w -F FORWARD
    \$tables -w -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
    \$tables -w -A FORWARD -i $inside -o $outside -j ACCEPT
    \$tables -w -t nat -F POSTROUTING
    \$tables -w -t nat -A POSTROUTING -o $outside -j MASQUERADE
done
F
chmod 755 /usr/local/sbin/router-firewall
cat >/etc/systemd/system/router-firewall.service <<'U'
[Unit]
Description=the router's own firewall
Before=algate.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/router-firewall
[Install]
WantedBy=multi-user.target
U
systemctl daemon-reload
# Only once: running it again would flush what algate has put into the same chains.
systemctl is-active -q router-firewall || systemctl enable -q --now router-firewall

# algate, into a virtual environment of its own: from wheels that came along, or from the package index.
[ -x /opt/algate/bin/pip ] || python3 -m venv /opt/algate
if [ -d /tmp/algate/wheelhouse ]; then
    /opt/algate/bin/pip install -q --no-index --find-links /tmp/algate/wheelhouse --force-reinstall --no-deps \
        /tmp/algate/wheelhouse/*.whl
else
    echo "There is no vagrant/wheelhouse: run 'make wheelhouse' first" >&2
    exit 1
fi
ln -sf /opt/algate/bin/algate /usr/local/bin/algate

install -d -m 755 /etc/algate
sed "s/@INSIDE@/$inside/" /tmp/algate/files/algate.toml >/etc/algate/algate.toml
algate check >/dev/null

systemd=$(/opt/algate/bin/python -c 'import gateway.supervisor, pathlib; print(pathlib.Path(gateway.supervisor.__file__).parent / "install/systemd")')
install -D -m 644 "$systemd/algate.sysusers" /usr/lib/sysusers.d/algate.conf
systemd-sysusers algate.conf
install -m 644 "$systemd/algate.service" /etc/systemd/system/algate.service
systemctl daemon-reload
systemctl enable -q algate
systemctl restart algate

lab_key

algate status

rm -rf /tmp/algate
