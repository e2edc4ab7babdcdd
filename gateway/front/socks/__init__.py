"""The SOCKS server: versions 4, 4a and 5."""
