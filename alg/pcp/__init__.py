"""PCP (RFC 6887) and its predecessor NAT-PMP (RFC 6886): what a router that maps ports says and understands."""
