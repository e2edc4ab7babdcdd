"""Entry modules of the child processes, and the messages and documents with which they are started."""

import gateway.observe  # noqa: F401  # first, as it decides what the log's library loads
