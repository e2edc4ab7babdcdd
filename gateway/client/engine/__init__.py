"""Any program through the proxies: in a network namespace whose only way out is this process."""
