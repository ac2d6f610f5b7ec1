"""`pterefd calibrate`: what page tables cost on the running kernel, measured by a C program (measure.c)."""
