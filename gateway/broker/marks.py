"""The bits of the connection mark that tell rules of other firewalls about pinholes, and one bit of the packet mark."""

PINHOLE = 0x10000000
"""The connection was let into the NAT by a pinhole; it has to be admitted before it may pass."""

ADMITTED = 0x20000000
"""The connection has used up its pinhole: `-m connmark --mark 0x20000000/0x20000000` in FORWARD accepts it."""

MEDIA = 0x40000000
"""The connection belongs to a conversation (UDP): it passes only as long as that is open. Always with ADMITTED."""

UNREAD = PINHOLE | MEDIA
"""The connection belongs to a conversation that no module reads: its packets meet none of the rules that look for the
ports of modules."""

PASSING = 0x80000000
"""In the packet's own mark, from priority -5 to -3 of FORWARD and INPUT: some instance's conversation lets it pass.
From priority -90 of PREROUTING to -3 of INPUT: it belongs to a connection that the gateway has made with a client's
address."""

PROBE = 0xA19A7E01
"""The priority (SO_PRIORITY) of a probe: a datagram that shows what the NAT makes of it and never leaves this host, or
a connection that is only begun, to see whether a server listens."""

SPOKEN = (16384, 32767)
"""Ports of the gateway's own connections that have a client's address: below those that systems choose for themselves
(RFC 6056 section 3.2; Linux 32768, others 49152), so that the client's own connections have others."""
