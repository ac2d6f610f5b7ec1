"""pterefd: page-table memory that is empty or zero, seen and given back."""

__version__ = "0.1.0"
