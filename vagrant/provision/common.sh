# What all three machines share; sourced by their scripts. Repeatable: each step looks at what is there first.

# packages NAME...: install what is missing. With everything in the box it needs no network.
packages() {
    missing=
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
    done
    [ -z "$missing" ] && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # shellcheck disable=SC2086
    apt-get install -qy --no-install-recommends $missing
}

# link ADDRESS: the interface that has this address.
link() {
    ip -o -4 address show | awk -v a="$1/" 'index($4, a) == 1 { print $2 }'
}

# address6 INTERFACE ADDRESS/LENGTH [ROUTE via GATEWAY]...: an IPv6 address and routes, now and after each boot.
address6() {
    unit=/etc/systemd/system/lab-$1.service
    interface=$1 address=$2
    shift 2
    {
        echo "[Unit]"
        echo "Description=lab addresses and routes of $interface"
        echo "After=network.target networking.service ifup@$interface.service sys-subsystem-net-devices-$interface.device"
        echo "[Service]"
        echo "Type=oneshot"
        echo "RemainAfterExit=yes"
        echo "ExecStartPre=/bin/sh -c 'until ip -4 address show dev $interface | grep -q inet; do sleep 0.2; done'"
        echo "ExecStart=/sbin/ip address replace $address dev $interface nodad"
        for route in "$@"; do echo "ExecStart=/sbin/ip route replace $route dev $interface"; done
        echo "[Install]"
        echo "WantedBy=multi-user.target"
    } >"$unit"
    systemctl daemon-reload
    systemctl enable -q "lab-$interface.service"
    systemctl restart "lab-$interface.service"
}

# sip_files: SIPp's scenario files.
sip_files() {
    rm -rf /opt/sip
    cp -r /tmp/algate/sip /opt/sip
    chmod -R a+rX /opt/sip
}

# Scenarios go where `vagrant ssh inside -c 'sh scenarios/NAME.sh'` finds them.
scenarios() {
    rm -rf /home/vagrant/scenarios
    cp -r /tmp/algate/scenarios /home/vagrant/scenarios
    chown -R vagrant: /home/vagrant/scenarios
}

# ftp_server: an anonymous FTP server with a file in pub/ and room in upload/.
ftp_server() {
    install -d -m 755 /srv/ftp /srv/ftp/pub
    install -d -m 755 -o ftp -g nogroup /srv/ftp/upload
    [ -s /srv/ftp/pub/example.bin ] || head -c 4194304 /dev/urandom >/srv/ftp/pub/example.bin
    cat >/etc/vsftpd.conf <<'V'
listen=NO
listen_ipv6=YES
anonymous_enable=YES
no_anon_password=YES
local_enable=NO
write_enable=YES
anon_upload_enable=YES
anon_world_readable_only=NO
anon_umask=022
anon_root=/srv/ftp
connect_from_port_20=YES
secure_chroot_dir=/var/run/vsftpd/empty
V
    systemctl enable -q vsftpd
    systemctl restart vsftpd
}

# lab_key: let the client in, for scenarios that look at this machine or do something here.
lab_key() {
    install -m 700 -o vagrant -g vagrant -d /home/vagrant/.ssh
    keys=/home/vagrant/.ssh/authorized_keys
    grep -qxFf /tmp/algate/lab/key.pub "$keys" || cat /tmp/algate/lab/key.pub >>"$keys"
}
