"""Numbers only: arrays and compiled kernels over packed page tables and mappings.

layout  what stands where in the arrays, bit by bit
jit     how kernels are compiled; cache: where that is kept
arena   the arrays of one host, reserved as address space and filled as needed
blocks  sorted arrays in a common pool: an mm's mappings, its PMD pages, a file's cached pages
tables  upper tables and PTE pages: find, make, free
folios  pages that several entries map: large folios, small pages after fork
objects pages of files and shared memory: cached, charged, evicted
charge  what the mms of a group hold, each page once
entries the entries of one PTE page: transitions, sharing, counters

The engine knows bytes, spans and states; what an operation does to them is `mm`'s.
"""
