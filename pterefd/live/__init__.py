"""The machine's own processes: what its kernel tells of their memory, and of their page-table pages."""
