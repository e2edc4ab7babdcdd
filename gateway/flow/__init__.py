"""A flow from its request to its end: the way to the server, the table of flows, the audit."""
