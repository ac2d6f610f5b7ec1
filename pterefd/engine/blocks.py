"""Sorted arrays (int64 key -> int64 value) in one pool, in blocks of a power of two.

A block's header stands in three columns of its owner's row: position, length, capacity class. The
functions take the owner's 2-D array, the row and the first of the three columns.
"""

from __future__ import annotations

from pterefd.engine.jit import kernel
from pterefd.engine.layout import G_BLOCKS_TOP, G_CLASS, G_FULL, G_POOLS, POOL_BLOCKS, POOL_COLUMNS

FIRST_CLASS = 2  # the smallest block holds 4 pairs


@kernel
def _take_block(s, size_class):
    """Position of a free block of 2**size_class pairs; 0 where the pool is full."""
    head = s.g[G_CLASS + size_class]
    if head:
        s.g[G_CLASS + size_class] = s.key[head]
        return head
    top = s.g[G_BLOCKS_TOP]
    end = top + (1 << size_class)
    if end > s.g[G_POOLS + POOL_BLOCKS * POOL_COLUMNS + 3]:
        s.g[G_FULL] = POOL_BLOCKS + 1
        return 0
    s.g[G_BLOCKS_TOP] = end
    return top


@kernel
def _give_block(s, position, size_class):
    s.key[position] = s.g[G_CLASS + size_class]
    s.g[G_CLASS + size_class] = position


@kernel
def find(s, owner, row, c, key):
    """Index of the last pair whose key is <= key, -1 where all are greater."""
    base = owner[row, c]
    low = 0
    high = owner[row, c + 1]
    while low < high:
        middle = (low + high) >> 1
        if s.key[base + middle] <= key:
            low = middle + 1
        else:
            high = middle
    return low - 1


@kernel
def insert(s, owner, row, c, index, key, value):
    """Put a pair at index, moving the ones from there on. Order is the caller's care."""
    length = owner[row, c + 1]
    size_class = owner[row, c + 2]
    if length == 0 and size_class == 0:
        position = _take_block(s, FIRST_CLASS)
        if position == 0:
            return
        owner[row, c] = position
        owner[row, c + 2] = FIRST_CLASS
    elif length == 1 << size_class:
        position = _take_block(s, size_class + 1)
        if position == 0:
            return
        old = owner[row, c]
        for i in range(length):
            s.key[position + i] = s.key[old + i]
            s.val[position + i] = s.val[old + i]
        _give_block(s, old, size_class)
        owner[row, c] = position
        owner[row, c + 2] = size_class + 1
    base = owner[row, c]
    for i in range(length, index, -1):
        s.key[base + i] = s.key[base + i - 1]
        s.val[base + i] = s.val[base + i - 1]
    s.key[base + index] = key
    s.val[base + index] = value
    owner[row, c + 1] = length + 1


@kernel
def erase(s, owner, row, c, begin, end):
    """Take out the pairs [begin, end)."""
    base = owner[row, c]
    length = owner[row, c + 1]
    gone = end - begin
    for i in range(end, length):
        s.key[base + i - gone] = s.key[base + i]
        s.val[base + i - gone] = s.val[base + i]
    owner[row, c + 1] = length - gone


@kernel
def clear(s, owner, row, c):
    """Give the block back."""
    if owner[row, c + 2]:
        _give_block(s, owner[row, c], owner[row, c + 2])
    owner[row, c] = 0
    owner[row, c + 1] = 0
    owner[row, c + 2] = 0
