"""The bits of the connection mark that tell other firewalls' rules about pinholes, and one of the packet's own mark.

Only these bits are ever set or read; a rule elsewhere that writes the mark must leave them alone (use a mask).
"""

PINHOLE = 0x10000000
"""The connection was let into the NAT by a pinhole; it has to be admitted before it may pass."""

ADMITTED = 0x20000000
"""The connection has used up its pinhole: `-m connmark --mark 0x20000000/0x20000000` in FORWARD accepts it."""

MEDIA = 0x40000000
"""The connection belongs to a conversation (UDP): it passes only as long as that is open. Always with ADMITTED."""

PASSING = 0x80000000
"""In the packet's own mark, from priority -5 to -3 of FORWARD and INPUT: some instance's conversation lets it pass."""
