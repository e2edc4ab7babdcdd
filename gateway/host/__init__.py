"""What root asks of this host and does to it: iptables rules, the doctor, the rules and helpers of others."""
