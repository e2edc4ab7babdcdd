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

# Scenarios go where `vagrant ssh inside -c 'sh scenarios/NAME.sh'` finds them.
scenarios() {
    rm -rf /home/vagrant/scenarios
    cp -r /tmp/algate/scenarios /home/vagrant/scenarios
    chown -R vagrant: /home/vagrant/scenarios
}
