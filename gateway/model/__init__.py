"""Values and errors that cross rooms: requests, host names, leases. No I/O."""
