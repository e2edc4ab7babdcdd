"""The worker's backends of pinholes: kernel and userspace."""
