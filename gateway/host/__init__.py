"""Examines and changes this host: iptables rules, the doctor, the rules and helpers of other programs."""
