"""The tree over a live host: the kernel's own /proc, read as whoever asks, and what pterefd knows beside it."""
