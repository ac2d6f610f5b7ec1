"""The mount helper: mounts, as root, for a daemon that has no rights of its own."""
