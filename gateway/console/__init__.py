"""The console: a page for the operator, metrics and health, by HTTP."""
