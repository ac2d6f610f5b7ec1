"""The kernel's rules: system calls and faults become page-table operations, by profile.

events   what comes in: op codes and batches
profile  which kernel's rules hold, as flags
vma      mappings: find, split, merge (mm/vma.c)
unmap    zap, munmap, MADV_DONTNEED's tables (mm/memory.c, mm/pt_reclaim.c)
files    page cache, fault-around, truncation (mm/filemap.c, mm/shmem.c)
fault    accesses (mm/memory.c)
populate populate, mlock, mprotect (mm/gup.c, mm/mlock.c, mm/mprotect.c)
advise   madvise (mm/madvise.c)
remap    mmap, brk, mremap (mm/mmap.c, mm/mremap.c)
fork     fork and exit (kernel/fork.c)
overcommit  which mappings are refused (mm/util.c)
evict    what reclaim takes (mm/vmscan.c, mm/rmap.c)
smaps    walks that only look (fs/proc/task_mmu.c)
step     one batch of events, op by op
"""
