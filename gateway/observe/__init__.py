"""What a process records about itself (log lines, counters, traces), and the protocol with which it is asked for
them."""

import sys

# structlog loads rich and pygments, where they are installed, for a way of drawing that no process of ours uses: 0.15
# seconds at the start of each, and 8 MB. A module that is None here cannot be imported (the import system's own rule).
if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
