"""What a pinhole may be: the table of leases, ports, checks and messages. Pure; the broker and the workers share it."""
