"""What etc/traces/make.sh records of Python: rows of a table made, written as JSON, read back, indexed and dropped."""

import gc
import json
import mmap
import os
import time

ROWS = 250_000


def rows() -> list[dict[str, object]]:
    return [{"id": i, "name": f"user{i}", "tags": [f"a{i % 97}", f"b{i % 89}"], "score": i / 2} for i in range(ROWS)]


def main() -> None:
    table = rows()
    text = json.dumps(table)
    del table
    back = json.loads(text)
    del text
    by_name = {row["name"]: row for row in back}
    kept = list(by_name.values())[::10000]
    del back, by_name
    gc.collect()

    # A sparse table that is looked through before anything is in it: read, never written, so the zero page throughout.
    sparse = mmap.mmap(-1, 128 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert sparse.find(b"x") == -1

    # A program that goes on working: jemalloc looks at what may be given back only while something is allocated.
    for _ in range(30):
        json.loads(json.dumps(kept))
        time.sleep(0.05)

    # As a worker of multiprocessing ends: nothing is taken apart, what it holds is held to its end.
    os._exit(0)


main()
