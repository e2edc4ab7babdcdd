"""What a pinhole may be: the table of leases, ports, checks and messages. Pure. Broker and workers share it."""
