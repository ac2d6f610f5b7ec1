#!/usr/bin/python3
"""Python's multiprocessing: a pool that is forked and one that is spawned, shared memory, a child of a child."""

import multiprocessing
import os
from multiprocessing import shared_memory


def squares(n: int) -> int:
    return sum(i * i for i in range(n))


def fill(name: str, part: int) -> None:
    memory = shared_memory.SharedMemory(name)
    step = len(memory.buf) // 4
    memory.buf[part * step : (part + 1) * step] = bytes([part + 1]) * step
    memory.close()


def nested(depth: int) -> None:
    data = bytearray(depth << 20)
    if depth:
        child = os.fork()
        if child == 0:
            nested(depth - 1)
            os._exit(0)
        os.waitpid(child, 0)
    data[::4096] = bytes(len(data[::4096]))


def main() -> None:
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(3) as pool:
            pool.map(squares, range(0, 60_000, 3000))
    memory = shared_memory.SharedMemory(create=True, size=8 << 20)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=fill, args=(memory.name, part)) for part in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert memory.buf[-1] == 4
    memory.close()
    memory.unlink()
    nested(3)


if __name__ == "__main__":
    main()
