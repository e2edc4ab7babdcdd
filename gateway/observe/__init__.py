"""What a process records about itself (log lines, counters, traces), and the protocol with which it is asked for
them."""
