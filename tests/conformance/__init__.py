"""Conformance tables: what works with the gateway, with the kernel's helper and with neither."""
