"""Entry modules of the children, and what they are told at their start."""

import gateway.observe  # noqa: F401  # first, as it decides what the log's library loads
