"""Where clients arrive."""
