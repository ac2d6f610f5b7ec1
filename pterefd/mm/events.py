"""Events as the machine takes them: one batch of columns, and the codes that stand in it.

A source yields `Batch`es; the mm kernels run them. What trace-format.md calls by name (an op, an
advice, protection bits) is a small integer here. Sources translate once, at decoding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# ---- op codes: the index in OPS ------------------------------------------------------------
OPS = (
    "fault",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "brk",
    "madvise",
    "mlock",
    "munlock",
    "swap_out",
    "state",
    "cache",
    "truncate",
    "fork",
    "exec",
    "exit",
    "thread",
    "thread_exit",
    "free_ptes",
    "expect",
    "thp",
    "mlockall",
    "munlockall",
    "mbind",
)
OP_CODE = {name: code for code, name in enumerate(OPS)}
(
    OP_FAULT,
    OP_MMAP,
    OP_MUNMAP,
    OP_MREMAP,
    OP_MPROTECT,
    OP_BRK,
    OP_MADVISE,
    OP_MLOCK,
    OP_MUNLOCK,
    OP_SWAP_OUT,
    OP_STATE,
    OP_CACHE,
    OP_TRUNCATE,
    OP_FORK,
    OP_EXEC,
    OP_EXIT,
    OP_THREAD,
    OP_THREAD_EXIT,
    OP_FREE_PTES,
    OP_EXPECT,
    OP_THP,
    OP_MLOCKALL,
    OP_MUNLOCKALL,
    OP_MBIND,
) = range(len(OPS))

# ---- madvise advice codes: the index in ADVICE ---------------------------------------------
ADVICE = (
    "normal",
    "random",
    "sequential",
    "willneed",
    "dontneed",
    "dontneed_locked",
    "free",
    "cold",
    "pageout",
    "populate_read",
    "populate_write",
    "hugepage",
    "nohugepage",
    "collapse",
    "dontfork",
    "dofork",
    "wipeonfork",
    "keeponfork",
    "guard_install",
    "guard_remove",
    "remove",
    "mergeable",
    "unmergeable",
    "dontdump",
    "dodump",
    "hwpoison",
    "soft_offline",
)
ADVICE_CODE = {name: code for code, name in enumerate(ADVICE)}

# ---- protection and mapping flags, as bits of VMA flags (engine/layout.py has the rest) -----
PROT_READ = 1
PROT_WRITE = 2
PROT_EXEC = 4

MAP_FLAGS = (
    "shared",
    "private",
    "anonymous",
    "populate",
    "noreserve",
    "growsdown",
    "locked",
    "hugetlb",
    "stack",
    "heap",
    "uffd",
)
MAP_FLAG_BIT = {name: 1 << bit for bit, name in enumerate(MAP_FLAGS)}
MAP_SHARED = MAP_FLAG_BIT["shared"]
MAP_PRIVATE = MAP_FLAG_BIT["private"]
MAP_ANONYMOUS = MAP_FLAG_BIT["anonymous"]
MAP_POPULATE = MAP_FLAG_BIT["populate"]
MAP_NORESERVE = MAP_FLAG_BIT["noreserve"]
MAP_GROWSDOWN = MAP_FLAG_BIT["growsdown"]
MAP_LOCKED = MAP_FLAG_BIT["locked"]
MAP_HUGETLB = MAP_FLAG_BIT["hugetlb"]
MAP_STACK = MAP_FLAG_BIT["stack"]
MAP_HEAP = MAP_FLAG_BIT["heap"]
MAP_UFFD = MAP_FLAG_BIT["uffd"]

# ---- what `state` says the entries of a range are -------------------------------------------
ENTRIES = ("none", "zero", "anon", "file", "shmem", "swap", "guard")
ENTRY_CODE = {name: code for code, name in enumerate(ENTRIES)}

# ---- columns of an ext row -------------------------------------------------------------------
# mmap: prot, flags, path (index in Batch.paths, -1 without), offset and file_size (bytes, -1 unknown)
X_PROT, X_FLAGS, X_PATH, X_OFFSET, X_FILE_SIZE = range(5)
# mremap: new_addr, new_len (bytes), dontunmap (0 or 1)
X_NEW_ADDR, X_NEW_LEN, X_DONTUNMAP = range(3)
EXT_COLUMNS = 5

NO_TIME = -1  # in Batch.t: the event carries no time

I64 = npt.NDArray[np.int64]


@dataclass(slots=True)
class Batch:
    """Events in order, as columns. All arrays are C-contiguous and of length n.

    t     int64, nanoseconds since the trace's start, NO_TIME where absent
    pid   int32, pid inside the trace (0 where the op has none: cache, truncate)
    op    uint8, OP_*
    addr  int64, bytes; `cache`: the offset in the file; `expect`, `exec` ...: 0
    len   int64, bytes; `fault` without len: 4096; ops without len: 0
    arg   int64, by op:
            fault       1 for writing, 0 for reading
            mprotect    PROT_* bits
            brk         start of the heap, 0 where absent
            madvise     index in ADVICE
            mlock       1 with onfault
            swap_out    1 with dropped
            state       index in ENTRIES, plus STATE_TABLES where `tables` is true, STATE_HUGE where `huge` is
            fork        pid of the child
            thread, thread_exit   tid
            thp         1 with disabled
            mlockall    MCL_*
            mbind       1 with policy
            truncate, cache       index in `paths`
            mmap, mremap          row of `ext`
            exec, expect          index in `side`
            munmap, munlock, munlockall, exit, free_ptes   0
    err   int16, errno of the call (positive), 0 where it succeeded
    ext   int64[k, EXT_COLUMNS], what mmap and mremap carry beyond the columns (X_*)
    side  what only Python looks at: the fields of exec and expect, as decoded (dict, without op and pid)
    paths the trace's path names; the list grows from batch to batch, indices stay
    group the group of mms (as a memory cgroup) that the trace's processes belong to, "" none
    thp   what the trace's machine gives huge pages to: M_THP of engine/layout.py
    first index in the trace of the batch's first event, from 0; where a source can name a line,
          `where(i)` gives it
    group the group that new mms of the batch belong to, "" for none
    """

    t: I64
    pid: npt.NDArray[np.int32]
    op: npt.NDArray[np.uint8]
    addr: I64
    len: I64
    arg: I64
    err: npt.NDArray[np.int16]
    ext: I64
    side: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    first: int = 0
    thp: int = 0
    group: str = ""

    def __len__(self) -> int:
        return int(self.op.shape[0])


MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4

STATE_TABLES = 1 << 8
STATE_HUGE = 1 << 9
