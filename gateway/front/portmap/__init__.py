"""Where clients inside ask for public ports: PCP, NAT-PMP and UPnP IGD, over one table of mappings."""
