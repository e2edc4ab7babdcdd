"""Sockets, addresses and names of this host, and the moving of bytes. Knows no rule and no protocol."""
