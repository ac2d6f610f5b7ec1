"""Giving back page tables of running processes: a stop, spans without data moved away, looked at, unmapped."""
