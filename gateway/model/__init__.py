"""Values and errors that several rooms share: requests, host names, leases. No I/O."""
