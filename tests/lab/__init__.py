"""The lab: network namespaces that look like a home network, its NAT router and the Internet."""
