"""What stands where: columns of the state's arrays, entry states, bits.

Addresses are bytes in int64 (user addresses fit 47 bits); counters of entries and tables are counts.
"""

from __future__ import annotations

import numpy as np

PAGE = 4096
PAGE_SHIFT = 12
SPAN = 1 << 21  # what one PTE page maps
SPAN_SHIFT = 21
SLOT = 1 << 30  # what one PMD page maps
SLOT_SHIFT = 30
PGD_SHIFT = 39  # what one PUD page maps
ADDRESS_END = 1 << 47
ENTRIES_PER_TABLE = 512

# ---- entry codes (uint8 in S.ent; the low 4 bits are the state, above them flags) ---------------
E_NONE = 0
E_ZERO = 1  # the shared zero page
E_ANON = 2
E_FILE = 3
E_SHMEM = 4
E_SWAP = 5
E_GUARD = 6  # MADV_GUARD_INSTALL's marker
E_PFN = 7  # present without a page behind it that counts (vvar)
E_WP = 8  # userfaultfd write-protect marker
E_POISON = 9  # UFFDIO_POISON's marker
# A span that a PMD entry maps: its record in S.pte is the deposited PTE page, and all 512 entries are alike.
E_HUGE_ZERO = 10  # the huge zero page
E_HUGE = 11  # a 2 MiB folio
N_STATES = 16
E_STATE = 0x0F
E_LAZY = 0x10  # with E_ANON, E_HUGE: made clean by MADV_FREE, not written to since
E_BLANK = 0x20  # with E_ANON, E_SWAP: its page is all zero, as nobody has written to it
E_OWNED = 0x40  # with E_HUGE: PageAnonExclusive
E_CODE = 0x7F
E_CODES = 128
FOLIO_SHIFT = 8  # of a huge page's P_ENT: above the code the folio

# ---- pte_refcount: as the mail of Aug 2022 packs it -------------------------------------------
REF_MAPPED = 0x3FF  # bits 0-9: entries that are not none
REF_ZERO_SHIFT = 10  # bits 10-19: entries that map the zero page (mapped ones too)
REF_ALL_ZERO = 512 | (512 << REF_ZERO_SHIFT)

# ---- S.pte[p]: one PTE page --------------------------------------------------------------------
P_REF = 0  # pte_refcount
P_ENT = 1  # entries: > 0 index in S.ent; <= 0 all 512 alike, minus this is their code (and the folio, of a huge page)
PTE_COLUMNS = 2
P_NEXT = P_REF  # of a free record: the next free one

# ---- S.fol[f]: an anonymous folio of more than one page, while it is mapped --------------------------
F_ORDER = 0
F_MAPS = 1  # _large_mapcount: PMD entries and PTEs that map it
F_MM0 = 2  # the two mms that the kernel keeps count of (CONFIG_MM_ID): mm, its mappings
F_MAPS0 = 3
F_MM1 = 4
F_MAPS1 = 5
F_SHARED = 6  # FOLIO_MM_IDS_SHARED
F_SPAN = 7  # span number of its pages, in mms that have moved none
F_WRITTEN = 8  # 16 x 32 bits, while a PMD entry maps it: pages that were written to
F_MLOCKED = 24  # PG_mlocked that no munlock takes away any more
F_LAZY = 25  # MADV_FREE has made the whole folio lazyfree (not PG_swapbacked)
FOLIO_COLUMNS = 26
F_NEXT = F_ORDER

# ---- S.frow[r]: which folio's page each entry of a PTE page maps: folio, FROW_OWNED, page in the folio; 0 none;
# < 0: minus twice the record of S.shp of a small page that several PTE pages may map, less 1 where it is in swap ----
FROW_PAGE = 0x1FF
FROW_OWNED = 0x200  # PageAnonExclusive
FROW_SHIFT = 10
FROW_COUNT = 512  # column: entries that are not 0
FROW_COLUMNS = 514

# ---- S.shp[h]: a small anonymous page, or its swap slot, that fork has given to several PTE pages ---------
SH_PAGES = 0  # rows of S.ent in which an entry maps the page
SH_SLOTS = 1  # rows of S.ent in which an entry holds its swap slot
SH_COLUMNS = 2
SH_NEXT = SH_PAGES

# ---- S.away[w]: when the PTE page of each span of a PMD page was freed, ms of the host's clock; 0 it was not;
# -1 it was made again ----
AWAY_COLUMNS = 512
AWAY_NEXT = 0
AWAY_CLASSES = 32  # of how long PTE pages stayed away: class c counts those of less than 2**c ms

# ---- S.pmd[t]: one PMD page: 512 PTE page indices (0 none), then bits, one a span -----------------
PMD_BITS = 512
PMD_RECLAIMABLE = 528  # number of bits set
PMD_PAGES = 529  # number of PTE pages
PMD_FREED = 530  # 16 columns of bits: the span's PTE page was freed, not by munmap
PMD_NFREED = 546  # number of those bits set
PMD_ATOMIC = 547  # 16 columns of bits: percpu-2022, the PTE page's percpu_ref is in atomic mode
PMD_AWAY = 563  # record of S.away, 0 while no PTE page was freed here
PMD_COLUMNS = 564
PMD_NEXT = 0

# ---- S.near[n]: PMD pages that were looked up lately, by mm and GiB slot ------------------------------
NEAR = 4096  # a power of two
N_KEY = 0  # mm << NEAR_SHIFT | slot, 0 none
N_PMD = 1
NEAR_COLUMNS = 2
NEAR_SHIFT = 17  # bits of a slot

# ---- kinds of PTE page ---------------------------------------------------------------------------
K_DATA = 0  # some entry is neither none nor the zero page
K_EMPTY = 1
K_ZERO = 2
K_NO_PAGE = 3
K_MIXED = 4  # zero entries and none, nothing else: reclaimable in spirit, kept by the mail's rule

# ---- S.vma[v]: one mapping -----------------------------------------------------------------------
V_START = 0
V_END = 1
V_FLAGS = 2
V_PGOFF = 3  # in pages; of private anonymous memory the address it was made at
V_OBJ = 4  # index in S.obj, -1 for private anonymous memory
V_ANON = 5  # id of the anon_vma, 0 none
V_CHAIN = 6  # length of anon_vma_chain, 0 without an anon_vma
VMA_COLUMNS = 8
V_NEXT = 0

# ---- V_FLAGS: VM_* of include/linux/mm.h, with numbers of our own ---------------------------------
VM_READ = 1
VM_WRITE = 2
VM_EXEC = 4
VM_SHARED = 1 << 3
VM_GROWSDOWN = 1 << 4
VM_LOCKED = 1 << 5
VM_LOCKONFAULT = 1 << 6
VM_DONTCOPY = 1 << 7
VM_WIPEONFORK = 1 << 8
VM_NORESERVE = 1 << 9
VM_ACCOUNT = 1 << 10
VM_MAYBE_GUARD = 1 << 11  # sticky: does not hinder merges
VM_HUGEPAGE = 1 << 12
VM_NOHUGEPAGE = 1 << 13
VM_PFNMAP = 1 << 14
VM_SPECIAL = 1 << 15  # made by the kernel (vdso): never merges, no fault-around
VM_HUGETLB = 1 << 16
VM_RAND_READ = 1 << 17
VM_SEQ_READ = 1 << 18
VM_DONTDUMP = 1 << 19
VM_MERGEABLE = 1 << 20
VM_STACK = 1 << 21  # the main stack, for its name in maps; a stack never merges by VM_GROWSDOWN alone
VM_IMPLIED = 1 << 22  # an access was recorded where no mapping was
VM_POLICY = 1 << 23  # a memory policy of its own (mbind); those of two mappings are taken to be equal
VM_UFFD = 1 << 24  # registered with userfaultfd: its own vm_userfaultfd_ctx, so it merges with no other
VM_ACCESS = VM_READ | VM_WRITE | VM_EXEC
VM_LOCKED_MASK = VM_LOCKED | VM_LOCKONFAULT
VM_NO_MERGE = VM_PFNMAP | VM_SPECIAL | VM_HUGETLB

# ---- S.obj[o]: what a mapping shows: a file, a shmem object, a part of the kernel ------------------
O_KIND = 0
O_SIZE = 1  # bytes, -1 unknown
O_KNOWN = 2  # 1: O_CACHED tells which pages are in the page cache; 0: all are taken to be
O_CACHED = 3  # block of cached runs: first page -> end page (3 columns)
O_REFS = 6
O_CHARGED = 7  # block of runs, as O_CACHED: pages that are in the host's memory
O_EVICTED = 10  # block of runs: pages that reclaim took; of shared memory they are in swap
O_NCHARGED = 13  # pages in O_CHARGED
O_NEVICTED = 14  # pages in O_EVICTED
O_GROUP = 15  # the group that they are charged to: whose mm touched the object first
O_TOUCHED = 16  # ns: when a page was last charged
O_COMMITTED = 17  # pages that count as committed (shmem_acct_size)
O_ONE_BY_ONE = 18  # 1: its mappings have no vm_ops->map_pages, so that a read fault maps one page
OBJ_COLUMNS = 19
O_NEXT = 0
OBJ_FILE = 0
OBJ_SHMEM = 1
OBJ_VDSO = 2
OBJ_VVAR = 3
OBJ_DEV_ZERO = 4  # a private map of it is anonymous, a shared one is shmem

# ---- S.mm[m]: one mm ---------------------------------------------------------------------------
M_PID = 0
M_ALIVE = 1
M_PROFILE = 2  # bits of mm/profile.py
M_SLOTS = 3  # block: GiB slot -> PMD page (3 columns)
M_VMAS = 6  # block: start address -> mapping (3 columns)
M_PUDS = 9  # 4 x 64 bits: PGD slots that have a PUD page
M_NPTE = 13
M_NPMD = 14
M_NPUD = 15
M_E = 16  # N_STATES columns: entries by state (M_E + E_ANON ...); M_E + E_NONE is without meaning
M_EMPTY = 32  # PTE pages that are empty
M_ZERO = 33  # PTE pages with 512 zero entries
M_UNLOCATED = 34  # PTE pages that a snapshot could not place
M_TOTAL_VM = 35  # pages, as the kernel's total_vm ...
M_LOCKED_VM = 36
M_DATA_VM = 37
M_STACK_VM = 38
M_EXEC_VM = 39
M_HIWATER_VM = 40
M_HIWATER_RSS = 41
M_START_BRK = 42
M_BRK = 43
M_DEF_FLAGS = 44
M_FAULTS = 45
M_LAST_FAULT = 46  # ns
M_DIRTY = 47  # 1: in S.dirty since the last publication
M_SLOT_HINT = 48  # where in the slots' block the last look-up ended
M_PEAK_TABLES = 49  # most page-table pages so far
M_PEAK_RECLAIMABLE = 50  # most empty and zero PTE pages so far
M_MIXED = 52  # PTE pages that hold zero entries and none
M_THP = 53  # THP_* bits
M_MOVED = 54  # 1: mremap has moved pages, so those of a folio may lie anywhere
M_BEGUN = 51  # 1: it ran; a `state` that changes something is a correction from then on
M_FREED_AUTO = 64  # PTE pages that the profile freed by itself, short of munmap and exit
M_FREED_REQUEST = 65  # PTE pages freed by free_ptes
M_AGAIN = 66  # PTE pages made where one had been freed in one of these ways
M_PFN_LOW = 67  # all VM_PFNMAP and VM_HUGETLB mappings that there were lie in [M_PFN_LOW, M_PFN_HIGH)
M_PFN_HIGH = 68
M_KEPT_EMPTY = 69  # as last published: empty PTE pages that free_ptes passes over
M_KEPT_ZERO = 70  # ... PTE pages with 512 zero entries
M_PEAK_FREEABLE = 71  # most that free_ptes would have freed at a publication, where it keeps some
M_REF_UPDATES = 72  # changes of a pte_refcount: entries set and cleared
M_WALKS = 73  # pte_offset_map of walkers, those of faults apart: M_FAULTS
M_RMAP_LOCKS = 74  # rmap locks that keep others off the PTE pages freed on request: a mapping of their span each
M_WRITE_HOLDS = 75  # mmap_lock taken for writing to free PTE pages
M_GROUP = 76  # record of S.grp
M_SEEN_ANON = 77  # anonymous pages, swap entries, page-table pages that its group has been told of
M_SEEN_SWAP = 78
M_SEEN_TABLES = 79
M_MAJOR = 80  # faults that had to read a page
M_SWAP_INS = 81  # pages of them that came from swap
M_SINCE = 82  # ns: from when on it has had reclaimable PTE pages without a break
M_AWAY = 83  # ns, summed up: how long PTE pages stayed away that were freed short of munmap, and made again
M_HAND = 84  # address at which reclaim goes on
M_COMMITTED = 85  # pages of its mappings with VM_ACCOUNT
M_REFUSED = 86  # mappings that the host refused it
M_TOLD_FAULTS = 87  # M_FAULTS, M_MAJOR and M_SWAP_INS that S.g has been told of
M_TOLD_MAJOR = 88
M_TOLD_SWAP_INS = 89
MM_COLUMNS = 92
M_NEXT = 3
KILLED = -1  # in S.pids: the OOM killer took the mm of that pid

# ---- M_THP: what the machine gives an mm (/sys/kernel/mm/transparent_hugepage) -----------------------
THP_ORDERS = 0x3FF  # bit n: folios of order n for every mapping; 9 is the PMD's
THP_ADVISED = 16  # shift: ... for mappings with VM_HUGEPAGE
THP_ZERO_PAGE = 1 << 30  # use_zero_page
THP_DISABLED = 1 << 31  # prctl(PR_SET_THP_DISABLE)
PMD_ORDER = 9

# ---- S.g: numbers of the whole host -----------------------------------------------------------
G_FULL = 0  # 1 + G_POOLS index of the pool that ran out; the state is then no longer right
G_NEXT_ANON = 1
G_NDIRTY = 2
G_OUTSIDE = 3  # accesses outside every mapping
G_REFUSED = 4  # accesses that the mapping does not allow
G_HUGETLB = 5  # accesses to hugetlb mappings, not modelled
G_SKIPPED = 7  # events of a pid that has no mm (any more)
G_BLOCKS_TOP = 6
G_CLASS = 8  # 32 columns: free blocks by size class
G_POOLS = 40  # per pool: top (first never used), free list's head, in use, capacity
POOL_COLUMNS = 4
(
    POOL_MM,
    POOL_VMA,
    POOL_PMD,
    POOL_PTE,
    POOL_ENT,
    POOL_OBJ,
    POOL_BLOCKS,
    POOL_FOLIO,
    POOL_FROW,
    POOL_SHARED,
    POOL_AWAY,
) = range(11)
POOL_NAMES = (
    "mms",
    "mappings",
    "PMD pages",
    "PTE pages",
    "PTE pages with entries of their own",
    "files",
    "blocks",
    "large folios",
    "PTE pages that map large folios",
    "small pages that fork has shared",
    "PMD pages in which PTE pages were freed",
)
G_NOW = 84  # ns: the time of the event that runs
G_ACCOUNT = 85  # 1: memory is accounted (S.grp)
G_GROUPS = 86  # groups in use, the host itself as 0 among them
G_DONE = 87  # bytes of the event at which run_events stopped that have been run
G_LOST = 88  # events of an mm that the OOM killer took, accesses to memory that was refused
G_COMMITTED = 89  # pages, as the kernel's vm_committed_as
G_OVERCOMMIT = 90  # overcommit_memory
G_COMMIT_LIMIT = 91  # pages: vm_commit_limit, less what is kept for administrators
G_TOTAL = 92  # pages of memory and swap
G_MAX_MAP_COUNT = 93
G_REFUSED_MAPS = 94  # mappings that were refused
G_USER_RESERVE = 95  # pages: user_reserve_kbytes
G_AWAY = 96  # AWAY_CLASSES columns: PTE pages made again, by how long they were away
G_FAULTS = 128  # of all mms, gone ones too, as last published: pgfault
G_MAJOR = 129
G_SWAP_INS = 130  # pswpin
G_COLUMNS = 136

# ---- S.grp[g]: what a group's mms hold, in pages; group 0 is the whole host --------------------------
C_ANON = 0  # entries that map anonymous pages, those of large folios too
C_SWAP = 1  # swap entries
C_TABLES = 2  # page-table pages
C_DUP_ANON = 3  # of C_ANON: entries beyond the first that map the same small page
C_DUP_SWAP = 4  # of C_SWAP: entries beyond the first that hold the same swap slot
C_FOLIO_ENTRIES = 5  # of C_ANON: entries that map pages of large folios
C_FOLIO_PAGES = 6  # pages of these folios
C_FILE = 7  # page cache
C_SHMEM = 8  # pages of shared memory
C_SHMEM_SWAP = 9  # ... that are in swap
C_STOP = 10  # run_events stops where more pages than this are in use
C_LIMIT = 11  # memory.max, 0 none
GRP_COLUMNS = 12

# ---- transitions: what an operation makes of an entry's code, by operation -----------------------
(
    T_ZAP,
    T_READ,
    T_WRITE,
    T_WRITE_FILE,
    T_FREE,
    T_SWAP_OUT,
    T_DROP,
    T_GUARD,
    T_UNGUARD,
    T_UNMAP_FILE,
    T_UNMAP_ALL,
    T_FILL_FILE,
    T_FILL_SHMEM,
    T_FILL_PFN,
    T_POPULATE,
    T_LAZY,
    T_SET,
) = range(17)
N_TRANSITIONS = T_SET + N_STATES  # T_SET + state: becomes that state whatever it was


def _transitions() -> np.ndarray:
    """int64[N_TRANSITIONS, E_CODES] (a kernel's integers are all int64); kernel-rules.md, section 2."""
    table = np.tile(np.arange(E_CODES, dtype=np.int64), (N_TRANSITIONS, 1))
    swapped = (E_SWAP, E_SWAP | E_BLANK)
    anon = [E_ANON | lazy | blank for lazy in (0, E_LAZY) for blank in (0, E_BLANK)]

    table[T_ZAP] = E_NONE  # mm/memory.c zap_pte_range; a guard marker stays in MADV_DONTNEED
    table[T_ZAP, E_GUARD] = E_GUARD
    table[T_UNMAP_ALL] = E_NONE  # munmap, exit

    table[T_READ, E_NONE] = E_ZERO  # do_anonymous_page
    table[T_READ, swapped] = (E_ANON, E_ANON | E_BLANK)  # do_swap_page
    table[T_WRITE, [E_NONE, E_ZERO, *swapped, *anon]] = E_ANON
    table[T_WRITE_FILE] = table[T_WRITE]  # do_cow_fault, do_wp_page of a private file mapping
    for code in (E_FILE, E_SHMEM):
        table[T_WRITE_FILE, code] = E_ANON

    # a write by the kernel, which brings no data: populate, mlock
    table[T_POPULATE, [E_NONE, E_ZERO]] = E_ANON | E_BLANK
    table[T_POPULATE, swapped] = (E_ANON, E_ANON | E_BLANK)
    for code in anon:
        table[T_POPULATE, code] = code & ~E_LAZY
        table[T_FREE, code] = code | E_LAZY  # madvise_free_pte_range
        table[T_SWAP_OUT, code] = E_SWAP | (code & E_BLANK)
    table[T_FREE, swapped] = E_NONE
    table[T_DROP, anon] = E_NONE  # whether it was clean is known to the folio, so the trace is believed
    table[T_DROP, E_FILE] = E_NONE
    table[T_DROP, E_SHMEM] = E_NONE

    for code in anon:
        if code & E_LAZY:
            table[T_LAZY, code] = E_NONE  # reclaim: clean MADV_FREE pages alone

    table[T_GUARD] = E_GUARD
    table[T_UNGUARD, E_GUARD] = E_NONE
    for code in (E_FILE, E_SHMEM):
        table[T_UNMAP_FILE, code] = E_NONE  # hole punch: copies of one's own stay
    table[T_FILL_FILE, E_NONE] = E_FILE
    table[T_FILL_SHMEM, E_NONE] = E_SHMEM
    table[T_FILL_PFN, E_NONE] = E_PFN
    for state in range(N_STATES):
        table[T_SET + state] = state
    return table


TRANSITIONS = _transitions()


def _ref_updates() -> np.ndarray:
    """int64[N_TRANSITIONS, E_CODES]: how often the transition changes the entry's pte_refcount on the way.

    rfc-2022: track_pte_set in set_pte_at, track_pte_clear in ptep_get_and_clear (the older series: pte_get, pte_put). A
    path that clears an entry before it sets it again counts two, though the entry is set before and after.
    """
    changed = np.arange(E_CODES) != TRANSITIONS
    to_none = (TRANSITIONS & E_STATE) == E_NONE
    from_none = (np.arange(E_CODES) & E_STATE) == E_NONE
    updates = np.where(to_none | from_none, 1, 2)
    # do_swap_page sets over the swap entry; a write to a page that is clean, or was all zero, is the hardware's
    old = np.arange(E_CODES) & E_STATE
    in_place = np.isin(old, (E_SWAP, E_ANON))
    for transition in (T_READ, T_WRITE, T_WRITE_FILE, T_POPULATE):
        updates[transition, in_place] = 0
    updates[T_SET:] = 0  # what a snapshot says is no work of the kernel's
    return np.where(changed, updates, 0).astype(np.int64)


REF_UPDATES = _ref_updates()
