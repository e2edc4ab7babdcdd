"""The sockets, addresses and names of this host, and the moving of bytes. It knows no rule and no protocol."""
