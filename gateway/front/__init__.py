"""The fronts: where clients arrive."""
