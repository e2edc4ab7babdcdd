"""The one privileged process: it puts leases into the kernel."""
