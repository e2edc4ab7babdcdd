"""Entry modules of the children, and what they are told at their start."""
