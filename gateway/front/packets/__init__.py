"""Datagrams of unconfigured clients, read in the packet path (NFQUEUE)."""
