"""The front for clients inside that ask for public ports: PCP, NAT-PMP and UPnP IGD, with one table of mappings."""
