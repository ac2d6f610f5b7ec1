#!/usr/bin/python3
"""CPython with six threads that make, sort and drop objects, map and unmap memory, and start processes."""

import mmap
import random
import subprocess
import threading

MIB = 1 << 20


def work(seed: int) -> None:
    draw = random.Random(seed)
    for turn in range(10):
        numbers = [draw.random() for _ in range(20_000)]
        numbers.sort()
        words = {str(number): [number] * 3 for number in numbers[:5000]}
        area = mmap.mmap(-1, 6 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(0, 6 * MIB, 4096 * draw.randint(1, 9)):
            area[at] = 1
        area.madvise(mmap.MADV_DONTNEED, draw.randrange(3) * MIB, 2 * MIB)
        if turn % 5 == seed % 5:
            subprocess.run(["true"], check=True)
        del words, numbers
        area.close()


threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
