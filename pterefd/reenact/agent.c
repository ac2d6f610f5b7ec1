/*
 * The agent: runs memory operations on its own address space, one a line, and says after each what
 * the kernel thinks of that address space.
 *
 * It is its own tiny world (no libc, no heap, no vdso, no initialised data), so that its address
 * space is three mappings (text, bss, stack), every page of which is touched before the first
 * command. From then on nothing that it does for itself changes a page table or a counter: what
 * changes, the commands changed.
 *
 * Built with -DAPART=ADDR, it keeps to the 512 GiB that ADDR lies in: its stack is part of the bss, the
 * one that execve made is unmapped, and [vvar] and [vdso] wait at ADDR until a command moves them. The
 * rest of the address space is free for whatever is to be done again.
 *
 * Commands come on the file descriptor FD0 + slot, numbers in hexadecimal without 0x:
 *
 *   m ADDR LEN PROT FLAGS FD OFFSET   mmap, arguments as they are (FD ffffffff: -1)
 *   u ADDR LEN                        munmap
 *   r ADDR LEN NEWLEN FLAGS NEWADDR   mremap
 *   p ADDR LEN PROT                   mprotect
 *   b ADDR                            brk; errno ENOMEM where the heap does not end at ADDR after it
 *   a ADDR LEN ADVICE                 madvise
 *   l ADDR LEN FLAGS                  mlock2
 *   k ADDR LEN                        munlock
 *   t ADDR PAGES HOW                  touch each page; HOW 0 read, 1 write, 2 write(2) from it, 3 read(2) into it,
 *                                     4 read or 5 write by /proc/self/mem, which passes over what mprotect forbids
 *   h START ADDR                      the heap begins at START and ends at ADDR, by prctl; no mapping changes
 *   v KIND ADDR LEN                   move a mapping of the kernel's own (KIND as y has it) to ADDR
 *   o FD KIND                         open on FD, for what is started from here: 0 a new file beside the agent, without
 *                                     a name, 1 one of memfd_create, 2 /dev/zero
 *   z FD SIZE                         ftruncate
 *   c FD PAGE PAGES                   write pages of the file, one by one, so that they are in the page cache
 *   g                                 write its own pid to /proc/sys/vm/free_ptes
 *   j DISABLED                        no huge pages from now on, or again: prctl, what is forked and executed inherits it
 *   n COUNT WANT                      do the commands of the next COUNT lines (m u r p b a l k t) without an answer to each
 *   f SLOT                            fork; the child answers on its own slot, with its pid as result
 *   e SLOT                            exec itself again, the new image answers on SLOT
 *   x                                 exit
 *   q                                 nothing
 *   s                                 nothing, and the answer lists the entries
 *   y                                 nothing, and the answer lists the mappings
 *
 * An answer is one line, decimal but for the lists, which are hexadecimal:
 *
 *   ERRNO RESULT VmPTE RssAnon RssFile RssShmem VmSwap zero present swap guard vmas huge
 *       [F FIRST COUNT SIGNAL]...  of touch: runs of pages that could not be accessed
 *       [R START END CATEGORIES]... of s: runs of entries, categories as PAGEMAP_SCAN has them; of y: mappings, their
 *                                   PROT_* bits and, times 8, their KIND: 0 anonymous, 1 a file, 2 [stack], 3 [vvar],
 *                                   4 [vvar_vclock], 5 [vdso], 6 another one of the kernel's
 *       [E INDEX ERRNO RESULT]...   of n: calls that failed or gave another address than asked for, or a touch that failed,
 *                                   whose F follow; RESULT of the line is the time in ns that all took, and the counters
 *                                   are 0 where WANT is
 */

#include "calls.h"

enum { STACK_PAGES = 24, REGIONS = 512, FAILED = 512, PATH = 4096 };
#ifdef APART
enum { BATCH = 1024 };
#else
enum { BATCH = 16 };
#endif
enum { KIND_ANON, KIND_FILE, KIND_STACK, KIND_VVAR, KIND_VCLOCK, KIND_VDSO, KIND_OTHER };

#define TASK_END 0x7ffffffff000UL
#define ADDR_NO_RANDOMIZE 0x0040000
#define RLIMIT_STACK 3
#define PR_SET_THP_DISABLE 41
#define PR_SET_PDEATHSIG 1
#define PR_SET_MM 35
#define PR_SET_MM_START_BRK 6
#define PR_SET_MM_BRK 7
#define PR_SET_MM_MAP 14
#define CLOCK_MONOTONIC 1
#define PAGEMAP_SCAN 0xc0606610UL

enum {
	IS_FILE = 4, IS_PRESENT = 8, IS_SWAPPED = 16, IS_PFNZERO = 32, IS_HUGE = 64, IS_GUARD = 256,
	ALL_CATEGORIES = IS_FILE | IS_PRESENT | IS_SWAPPED | IS_PFNZERO | IS_HUGE | IS_GUARD,
};

/* An entry of /proc/PID/pagemap. */
#define PM_FRAME ((1UL << 55) - 1)
#define PM_GUARD (1UL << 58)
#define PM_FILE (1UL << 61)
#define PM_SWAP (1UL << 62)
#define PM_PRESENT (1UL << 63)

struct scan {
	u64 size, flags, start, end, walk_end, vec, vec_len, max_pages;
	u64 inverted, mask, anyof, ret;
};

struct region {
	u64 start, end, categories;
};

static char in_buf[4096], status_buf[8192], maps_buf[8192], out_buf[16384];
static struct region regions[REGIONS], failed[FAILED];
static int in_len, in_pos, out_len;
static int fd_slot, fd_status, fd_maps, fd_pagemap, fd_mem, fd_pipe[2];
static u64 counts[5];              /* zero, present, swap, guard, huge */
static u64 scan_categories;        /* what PAGEMAP_SCAN knows here; 0: there is none */
static u64 zero_frame;             /* of the shared zero page, where there is none */
static u64 vm_swap;                /* VmSwap as last read, kB */
static char untouched[2 * PAGE];   /* holds a page that has no entry, ever */
static char path[PATH];            /* of the agent itself */
static volatile int last_signal;

#pragma GCC visibility push(hidden)     /* so that addresses are relative to the code, wherever it is linked */
extern char __executable_start, __bss_start, _end;
extern char touch_read_at, touch_write_at, touch_failed;
int touch_read(u64 addr);
int touch_write(u64 addr);
void restorer(void);
#pragma GCC visibility pop

/* ---- touching: a fault that cannot be served goes on at touch_failed -------------------------- */

__asm__(".globl touch_read, touch_write, touch_read_at, touch_write_at, touch_failed, restorer, _start\n"
	"touch_read:\n"
	"touch_read_at: movb (%rdi), %al\n"
	"	xorl %eax, %eax\n"
	"	ret\n"
	"touch_write:\n"
	"touch_write_at: movb $0x5a, (%rdi)\n"
	"	xorl %eax, %eax\n"
	"	ret\n"
	"touch_failed: movl $1, %eax\n"
	"	ret\n"
	"restorer: movl $15, %eax\n"
	"	syscall\n"
	"_start: movq %rsp, %rdi\n"
#ifdef APART
	"	leaq own_stack_end(%rip), %rsp\n"
#endif
	"	andq $-16, %rsp\n"
	"	call start\n");

#ifdef APART
__asm__(".local own_stack\n"
	".comm own_stack, 32768, 4096\n"
	".set own_stack_end, own_stack + 32768\n");
#endif

struct sigcontext_head {            /* struct ucontext up to rip, arch/x86 */
	u64 flags, link, stack[3];
	u64 r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip;
};

static void on_fault(int sig, void *info, struct sigcontext_head *context)
{
	(void)info;
	if (context->rip != (u64)&touch_read_at && context->rip != (u64)&touch_write_at)
		call(SYS_exit, 99, 0, 0);
	last_signal = sig;
	context->rip = (u64)&touch_failed;
}

static void catch_faults(int sig)
{
	struct { void *handler; u64 flags; void *restorer; u64 mask; } action;

	action.handler = (void *)on_fault;
	action.flags = 4 | 0x04000000 | 0x40000000; /* SA_SIGINFO, SA_RESTORER, SA_NODEFER */
	action.restorer = (void *)restorer;
	action.mask = 0;
	call6(SYS_rt_sigaction, sig, (u64)&action, 0, 8, 0, 0);
}

static void ignore_children(void)
{
	struct { u64 handler, flags; void *restorer; u64 mask; } action;

	action.handler = 1;
	action.flags = 0x04000000;
	action.restorer = (void *)restorer;
	action.mask = 0;
	call6(SYS_rt_sigaction, 17, (u64)&action, 0, 8, 0, 0);
}

/* ---- output ------------------------------------------------------------------------------------ */

static void flush(void)
{
	int done = 0;

	while (done < out_len) {
		long n = call(SYS_write, fd_slot, out_buf + done, out_len - done);

		if (n <= 0)
			call(SYS_exit, 98, 0, 0);
		done += n;
	}
	out_len = 0;
}

static void put_char(char c)
{
	if (out_len == (int)sizeof out_buf)
		flush();
	out_buf[out_len++] = c;
}

static void put(u64 value, u32 base)
{
	char digits[24];
	int n = 0;

	put_char(' ');
	do {
		digits[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	while (n)
		put_char(digits[--n]);
}

static void put_run(char mark, const struct region *run)
{
	put_char(' ');
	put_char(mark);
	put(run->start, 16);
	put(run->end, 16);
	put(run->categories, 16);
}

/* ---- what the kernel says ---------------------------------------------------------------------- */

static u64 status_value(const char *name, int len)
{
	const char *p = status_buf;

	for (;;) {
		int i = 0;
		u64 value = 0;

		while (i < len && p[i] == name[i])
			i++;
		if (i == len) {
			for (p += len; *p == ' ' || *p == '\t'; p++)
				;
			for (; *p >= '0' && *p <= '9'; p++)
				value = value * 10 + (*p - '0');
			return value;
		}
		while (*p && *p != '\n')
			p++;
		if (!*p)
			return 0;
		p++;
	}
}

static void put_status(void)
{
	long n = call6(SYS_pread64, fd_status, (u64)status_buf, sizeof status_buf - 1, 0, 0, 0);

	status_buf[n > 0 ? n : 0] = 0;
	put(status_value("VmPTE:", 6), 10);
	put(status_value("RssAnon:", 8), 10);
	put(status_value("RssFile:", 8), 10);
	put(status_value("RssShmem:", 9), 10);
	vm_swap = status_value("VmSwap:", 7);
	put(vm_swap, 10);
}

/*
 * Calls `each` (unless it is null) for every mapping of this address space, and returns their number. The line of
 * [vsyscall] is none of them.
 */
static u64 for_mappings(void (*each)(u64 start, u64 end, int list), int list)
{
	u64 mappings = 0, offset = 0, ends[2] = { 0, 0 };
	int field = 0;                 /* 0 start, 1 end, 2 the rest of the line */

	for (;;) {
		long n = call6(SYS_pread64, fd_maps, (u64)maps_buf, sizeof maps_buf, offset, 0, 0);

		if (n <= 0)
			return mappings;
		for (long i = 0; i < n; i++) {
			char c = maps_buf[i];

			if (c == '\n') {
				if (ends[0] < TASK_END) {
					mappings++;
					if (each)
						each(ends[0], ends[1], list);
				}
				field = ends[0] = ends[1] = 0;
			} else if (field < 2) {
				if (c == '-' || c == ' ')
					field++;
				else
					ends[field] = ends[field] * 16 + (c <= '9' ? c - '0' : c - 'a' + 10);
			}
		}
		offset += n;
	}
}

static void tally(const struct region *region)
{
	u64 pages = (region->end - region->start) / PAGE;
	u64 is = region->categories;

	if (is & IS_PRESENT)
		counts[1] += pages;
	if (is & IS_PFNZERO)
		counts[0] += pages;
	if (is & IS_GUARD)
		counts[3] += pages;
	else if (is & IS_SWAPPED)
		counts[2] += pages;
	if (is & IS_HUGE)
		counts[4] += pages;
}

/*
 * One run of alike entries: counted or, with list, put into the answer. Where PAGEMAP_SCAN does not tell guard markers
 * from swap (6.13 to 6.15), they are guard markers if this address space has nothing in swap.
 */
static void found(struct region *run, int list)
{
	if (run->categories & IS_SWAPPED && scan_categories && !(scan_categories & IS_GUARD) && !vm_swap)
		run->categories |= IS_GUARD;
	if (list)
		put_run('R', run);
	else
		tally(run);
}

/*
 * One call of PAGEMAP_SCAN. Never more than 512 runs in one call: with more room, the kernel (6.18, fs/proc/task_mmu.c
 * do_pagemap_scan) reports some of the later ones twice.
 */
static long scan_from(u64 start, u64 categories, u64 *walk_end)
{
	struct scan arg;
	long n;

	arg.size = sizeof arg;
	arg.flags = 0;
	arg.start = start;
	arg.end = TASK_END;
	arg.walk_end = 0;
	arg.vec = (u64)regions;
	arg.vec_len = REGIONS;
	arg.max_pages = 0;
	arg.inverted = 0;
	arg.mask = 0;
	arg.anyof = IS_PRESENT | IS_SWAPPED;
	arg.ret = categories;
	n = call(SYS_ioctl, fd_pagemap, PAGEMAP_SCAN, &arg);
	*walk_end = arg.walk_end;
	return n;
}

/* The same categories of an entry of /proc/PID/pagemap (fs/proc/task_mmu.c pte_to_pagemap_entry). */
static u64 categories_of(u64 entry)
{
	u64 is = 0;

	if (entry & PM_PRESENT)
		is = (entry & PM_FRAME) == zero_frame ? IS_PRESENT | IS_PFNZERO : IS_PRESENT;
	else if (entry & PM_SWAP)
		is = entry & PM_GUARD ? IS_SWAPPED | IS_GUARD : IS_SWAPPED;
	return is && entry & PM_FILE ? is | IS_FILE : is;
}

/* The entries of one mapping from /proc/self/pagemap, read into the memory that PAGEMAP_SCAN would use. */
static void read_entries(u64 start, u64 end, int list)
{
	u64 *entries = (u64 *)regions;
	struct region run = { start, start, 0 };

	while (start < end) {
		u64 size = (end - start) / PAGE * 8;
		long n = call6(SYS_pread64, fd_pagemap, (u64)entries, size < sizeof regions ? size : sizeof regions,
			       start / PAGE * 8, 0, 0);

		if (n <= 0)
			call(SYS_exit, 97, 0, 0);
		for (long i = 0; i < n / 8; i++, start += PAGE) {
			u64 is = categories_of(entries[i]);

			if (is != run.categories) {
				run.end = start;
				if (run.categories)
					found(&run, list);
				run.start = start;
				run.categories = is;
			}
		}
	}
	run.end = end;
	if (run.categories)
		found(&run, list);
}

/* Walks all entries: counts them or, with list, puts their runs into the answer. */
static void scan(int list)
{
	u64 start = 0;

	for (int i = 0; i < 5; i++)
		counts[i] = 0;
	if (!scan_categories) {
		for_mappings(read_entries, list);
		return;
	}
	do {
		long n = scan_from(start, scan_categories, &start);

		if (n < 0)
			call(SYS_exit, 97, 0, 0);
		for (long i = 0; i < n; i++)
			found(&regions[i], list);
	} while (start < TASK_END);
}

/*
 * Which categories the kernel tells: all (6.16), all but guard markers (6.7), or those of /proc/self/pagemap, where the
 * zero page is known by its frame: that of a page which was only read, in a mapping that is gone afterwards.
 */
static void learn_categories(void)
{
	u64 end, page;

	scan_categories = ALL_CATEGORIES;
	if (scan_from(0, scan_categories, &end) >= 0)
		return;
	scan_categories = ALL_CATEGORIES & ~IS_GUARD;
	if (scan_from(0, scan_categories, &end) >= 0)
		return;
	scan_categories = 0;
	page = call6(SYS_mmap, 0, PAGE, 1, 0x22, -1UL, 0); /* PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS */
	touch_read(page);
	call6(SYS_pread64, fd_pagemap, (u64)&zero_frame, 8, page / PAGE * 8, 0, 0);
	zero_frame &= PM_FRAME;
	call(SYS_munmap, page, PAGE, 0);
	if (!zero_frame)               /* only CAP_SYS_ADMIN sees frames */
		call(SYS_exit, 93, 0, 0);
}

static u64 untouched_page(void)
{
	return ((u64)untouched + PAGE - 1) & -PAGE;
}

/*
 * Before 6.2 a thread adds to its address space's counters after 64 faults only; the end of a zap adds what is left
 * (mm/memory.c zap_pte_range, add_mm_rss_vec). So one page is discarded in which nothing ever was.
 */
static void fold_counters(void)
{
	if (!scan_categories)
		call(SYS_madvise, untouched_page(), PAGE, 4); /* MADV_DONTNEED */
}

static void answer(long result)
{
	u32 err = 0;

	if (result < 0 && result > -4096) {
		err = -result;
		result = 0;
	}
	put(err, 10);
	put(result, 10);
	fold_counters();
	put_status();
	scan(0);
	for (int i = 0; i < 4; i++)
		put(counts[i], 10);
	put(for_mappings(0, 0), 10);
	put(counts[4], 10);
}

/* ---- commands ---------------------------------------------------------------------------------- */

static int next_char(void)
{
	if (in_pos == in_len) {
		long n = call(SYS_read, fd_slot, in_buf, sizeof in_buf);

		if (n <= 0)
			call(SYS_exit, 0, 0, 0);
		in_len = n;
		in_pos = 0;
	}
	return in_buf[in_pos++];
}

static int read_command(u64 *args)
{
	int command = next_char(), c = next_char(), n = 0;

	for (int i = 0; i < 6; i++)
		args[i] = 0;
	while (c != '\n' && n < 6) {
		for (c = next_char(); c != ' ' && c != '\n'; c = next_char())
			args[n] = args[n] * 16 + (c <= '9' ? c - '0' : c - 'a' + 10);
		n++;
	}
	return command;
}

static int touch(u64 addr, u64 how)
{
	static char byte;

	last_signal = 0;
	switch (how) {
	case 0:
		return touch_read(addr);
	case 1:
		return touch_write(addr);
	case 2:
		if (call(SYS_write, fd_pipe[1], addr, 1) != 1)
			return 1;
		call(SYS_read, fd_pipe[0], &byte, 1);
		return 0;
	case 4:
		return call6(SYS_pread64, fd_mem, (u64)&byte, 1, addr, 0, 0) != 1;
	case 5:
		byte = 0x5a;
		return call6(SYS_pwrite64, fd_mem, (u64)&byte, 1, addr, 0, 0) != 1;
	default:
		byte = 0x5a;
		call(SYS_write, fd_pipe[1], &byte, 1);
		if (call(SYS_read, fd_pipe[0], addr, 1) == 1)
			return 0;
		call(SYS_read, fd_pipe[0], &byte, 1);
		return 1;
	}
}

/* Touches each page, going on after a failure. Returns the number of failed runs, which stand in `failed` from `first`. */
static int touch_range(u64 addr, u64 pages, u64 how, int first)
{
	int runs = first;

	for (u64 i = 0; i < pages; i++) {
		struct region *run = &failed[runs - 1];

		if (!touch(addr + i * PAGE, how))
			continue;
		if (runs > first && run->start + run->end == i && run->categories == (u64)last_signal) {
			run->end++;
			continue;
		}
		if (runs == FAILED)
			call(SYS_exit, 96, 0, 0);
		failed[runs].start = i;
		failed[runs].end = 1;
		failed[runs++].categories = last_signal;
	}
	return runs - first;
}

static void open_proc(void)
{
	static const char status[] = "/proc/self/status", maps[] = "/proc/self/maps", pagemap[] = "/proc/self/pagemap",
			  mem[] = "/proc/self/mem";

	if (fd_status) {
		call(SYS_close, fd_status, 0, 0);
		call(SYS_close, fd_maps, 0, 0);
		call(SYS_close, fd_pagemap, 0, 0);
		call(SYS_close, fd_mem, 0, 0);
	}
	fd_status = call(SYS_open, status, O_CLOEXEC, 0);
	fd_maps = call(SYS_open, maps, O_CLOEXEC, 0);
	fd_pagemap = call(SYS_open, pagemap, O_CLOEXEC, 0);
	fd_mem = call(SYS_open, mem, O_CLOEXEC | O_RDWR, 0);
}

/* Touches every page of text, bss and stack but the untouched one, so that none is touched later for the first time. */
static void touch_own(void)
{
#ifndef APART
	volatile char stack[STACK_PAGES * PAGE];

	for (int i = 0; i < STACK_PAGES; i++)
		stack[i * PAGE] = 0;
	(void)stack[0];
#endif
	for (u64 p = (u64)&__executable_start; p < ((u64)&__bss_start & -PAGE); p += PAGE)
		touch_read(p);
	for (u64 p = (u64)&__bss_start & -PAGE; p < (u64)&_end; p += PAGE) {
		if (p != untouched_page())
			*(volatile char *)(p < (u64)&__bss_start ? (u64)&__bss_start : p) |= 0;
	}
}

static void become_child(u64 slot)
{
	fd_slot = FD0 + slot;
	in_len = in_pos = out_len = 0;
	touch_own();
	open_proc();
	call(SYS_close, fd_pipe[0], 0, 0);
	call(SYS_close, fd_pipe[1], 0, 0);
	call(SYS_pipe2, fd_pipe, O_CLOEXEC, 0);
	call(SYS_prctl, PR_SET_PDEATHSIG, 0, 0);
}

static void fork_to(u64 slot)
{
	long pid = call(SYS_fork, 0, 0, 0);

	if (pid == 0) {
		become_child(slot);
		answer(call(SYS_getpid, 0, 0, 0));
	} else {
		answer(pid < 0 ? pid : 0);
	}
}

/* Starts the agent anew. slot: that it answers on. */
static long exec_again(u64 slot)
{
	static char name[2], *argv[3], *envp[1];

	name[0] = '0' + slot;
	argv[0] = path;
	argv[1] = name;
	return call(SYS_execve, path, argv, envp);
}

static u64 now(void)
{
	static struct { u64 seconds, nanoseconds; } time;

	call(SYS_clock_gettime, CLOCK_MONOTONIC, &time, 0);
	return time.seconds * 1000000000 + time.nanoseconds;
}

/* A system call or a touch; a touch that fails leaves its runs in `failed` from `first`, and their number in *runs. */
static long perform(int command, const u64 *a, int first, int *runs)
{
	long result;

	*runs = 0;
	switch (command) {
	case 'm':
		return call6(SYS_mmap, a[0], a[1], a[2], a[3], (u64)(long)(int)a[4], a[5]);
	case 'u':
		return call(SYS_munmap, a[0], a[1], 0);
	case 'r':
		return call6(SYS_mremap, a[0], a[1], a[2], a[3], a[4], 0);
	case 'p':
		return call(SYS_mprotect, a[0], a[1], a[2]);
	case 'b':
		result = call(SYS_brk, a[0], 0, 0);
		return a[0] && result != (long)a[0] ? -12 : result;
	case 'a':
		return call(SYS_madvise, a[0], a[1], a[2]);
	case 'l':
		return call(SYS_mlock2, a[0], a[1], a[2]);
	case 'k':
		return call(SYS_munlock, a[0], a[1], 0);
	case 't':
		*runs = touch_range(a[0], a[1], a[2], first);
		return *runs ? -14 : 0;
	}
	return 0;
}

/* The address that a call was to give; what gives none, gives 0. */
static long asked_for(int command, const u64 *a)
{
	if (command == 'm' || command == 'b')
		return a[0];
	return command == 'r' ? (a[3] & 2 ? a[4] : a[0]) : 0;
}

static void batch(u64 count, u64 want)
{
	static struct { u64 args[6]; long result; int command, runs; } lines[BATCH];
	int used = 0;
	u64 began;

	if (count > BATCH)
		call(SYS_exit, 93, 0, 0);
	for (u64 i = 0; i < count; i++)
		lines[i].command = read_command(lines[i].args);
	began = now();
	for (u64 i = 0; i < count; i++) {
		lines[i].result = perform(lines[i].command, lines[i].args, used, &lines[i].runs);
		used += lines[i].runs;
	}
	began = now() - began;
	if (want) {
		answer(began);
	} else {
		put(0, 10);
		put(began, 10);
		for (int i = 0; i < 11; i++)
			put(0, 10);
	}
	used = 0;
	for (u64 i = 0; i < count; i++) {
		long result = lines[i].result;
		struct region one = { i, result < 0 && result > -4096 ? -result : 0, result };

		if (one.end)
			one.categories = 0;
		if (one.end || result != asked_for(lines[i].command, lines[i].args))
			put_run('E', &one);
		for (int j = 0; j < lines[i].runs; j++)
			put_run('F', &failed[used++]);
	}
}

/* PR_SET_MM_MAP needs no rights; where the kernel has it not, the two numbers are set one by one, which needs them. */
static long set_heap(u64 start, u64 addr)
{
	static struct {
		u64 start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end,
			env_start, env_end, auxv;
		u32 auxv_size, exe_fd;
	} map;
	/* start_brk <= brk must hold in between, so the order is by where the heap is now */
	int upwards = start > (u64)call(SYS_brk, 0, 0, 0);
	u64 own = (u64)&__executable_start;
	long result;

	map.start_code = map.start_data = map.end_data = map.start_stack = map.arg_start = map.arg_end = own;
	map.env_start = map.env_end = own;
	map.end_code = own + PAGE;
	map.start_brk = start;
	map.brk = addr;
	map.exe_fd = -1;
	result = call6(SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, (u64)&map, sizeof map, 0, 0);
	if (!result)
		return 0;
	result = call6(SYS_prctl, PR_SET_MM, upwards ? PR_SET_MM_BRK : PR_SET_MM_START_BRK, upwards ? addr : start,
		       0, 0, 0);
	if (result)
		return result;
	return call6(SYS_prctl, PR_SET_MM, upwards ? PR_SET_MM_START_BRK : PR_SET_MM_BRK, upwards ? start : addr,
		     0, 0, 0);
}

/* A file without a name in the directory of the agent. */
static long new_file(u64 fd)
{
	static char name[PATH + 40];
	int n = 0, end = 0;
	long file;

	for (; path[n]; n++) {
		name[n] = path[n];
		if (path[n] == '/')
			end = n + 1;
	}
	name[end++] = '.';
	for (u64 digits = fd << 32 | call(SYS_getpid, 0, 0, 0); digits; digits /= 10)
		name[end++] = '0' + digits % 10;
	name[end] = 0;
	file = call(SYS_open, name, O_RDWR | O_CREAT | O_EXCL, 0700);
	if (file >= 0)
		call(SYS_unlink, name, 0, 0);
	return file;
}

static long open_file(u64 fd, u64 kind)
{
	static const char zero[] = "/dev/zero", name[] = "agent";
	long file = kind == 0 ? new_file(fd) : kind == 1 ? call(SYS_memfd_create, name, 0, 0) : call(SYS_open, zero, O_RDWR, 0);
	long result;

	if (file < 0)
		return file;
	result = call(SYS_dup2, file, fd, 0);
	call(SYS_close, file, 0, 0);
	return result;
}

static long cache_pages(u64 fd, u64 page, u64 pages)
{
	static char content[PAGE];

	content[0] = 0x5a;
	for (u64 i = page; i < page + pages; i++) {
		long n = call6(SYS_pwrite64, fd, (u64)content, PAGE, i * PAGE, 0, 0);

		if (n != PAGE)
			return n < 0 ? n : -28;
	}
	return 0;
}

static long free_ptes(void)
{
	static const char name[] = "/proc/sys/vm/free_ptes";
	static char digits[16];
	long fd = call(SYS_open, name, 1, 0), pid = call(SYS_getpid, 0, 0, 0), result;
	int n = sizeof digits;

	if (fd < 0)
		return fd;
	for (; pid; pid /= 10)
		digits[--n] = '0' + pid % 10;
	result = call(SYS_write, fd, digits + n, sizeof digits - n);
	call(SYS_close, fd, 0, 0);
	return result < 0 ? result : 0;
}

/* ---- its own mappings -------------------------------------------------------------------------- */

/* The mappings of this address space, into `regions`: start, end, PROT_* bits and KIND_* << 3. Their number. */
static int list_mappings(void)
{
	static char line[8192];
	int count = 0;
	u64 offset = 0;

	for (;;) {
		long n = call6(SYS_pread64, fd_maps, (u64)line, sizeof line - 1, offset, 0, 0);
		char *p = line, *end = line + n;

		if (n <= 0)
			return count;
		while (end[-1] != '\n')   /* a line that is not whole is read again */
			end--;
		offset += end - line;
		while (p < end && count < REGIONS) {
			struct region *region = &regions[count];
			char *name = 0;

			region->start = region->end = 0;
			for (; *p != '-'; p++)
				region->start = region->start * 16 + (*p <= '9' ? *p - '0' : *p - 'a' + 10);
			for (p++; *p != ' '; p++)
				region->end = region->end * 16 + (*p <= '9' ? *p - '0' : *p - 'a' + 10);
			region->categories = (p[1] == 'r') | (p[2] == 'w') << 1 | (p[3] == 'x') << 2;
			for (; *p != '\n'; p++)
				if (!name && (*p == '[' || *p == '/'))
					name = p;
			p++;
			if (region->start >= TASK_END)
				continue;
			/* before 6.6 the bss, which ends where the heap begins, is called [heap] too */
			region->categories |= (!name || name[1] == 'h' ? KIND_ANON : *name == '/' ? KIND_FILE : name[1] == 's' ? KIND_STACK :
					       name[2] == 'd' ? KIND_VDSO : name[1] != 'v' ? KIND_OTHER :
					       name[5] == ']' ? KIND_VVAR : KIND_VCLOCK) << 3;
			count++;
		}
	}
}

#ifdef APART
static u64 parked(u64 kind)
{
	return APART + (kind << 20);
}
#endif

/* Moves one of the kernel's mappings from where it waits. */
static long move_special(u64 kind, u64 addr, u64 len)
{
#ifdef APART
	int count = list_mappings();

	for (int i = 0; i < count; i++)
		if (regions[i].start == parked(kind) && regions[i].end - regions[i].start == len)
			return call6(SYS_mremap, parked(kind), len, len, 3, addr, 0);
#endif
	(void)kind, (void)addr, (void)len;
	return -2;
}

/* What execve mapped beside the program: unmapped, or where the agent lives apart, put aside. */
static void clear_room(void)
{
	int count = list_mappings();

	for (int i = 0; i < count; i++) {
		u64 kind = regions[i].categories >> 3, start = regions[i].start, len = regions[i].end - start;

#ifdef APART
		if (kind > KIND_STACK)
			call6(SYS_mremap, start, len, len, 3, parked(kind), 0);
		else if (kind == KIND_STACK)
			call(SYS_munmap, start, len, 0);
#else
		if (kind > KIND_STACK)
			call(SYS_munmap, start, len, 0);
#endif
	}
}

static void run(void)
{
	u64 a[6];
	int command = read_command(a), runs = 0, count;

	switch (command) {
	case 'f':
		fork_to(a[0]);
		break;
	case 'e':
		answer(exec_again(a[0]));
		break;
	case 'x':
		call(SYS_exit, 0, 0, 0);
		break;
	case 'n':
		batch(a[0], a[1]);
		break;
	case 'h':
		answer(set_heap(a[0], a[1]));
		break;
	case 'v':
		answer(move_special(a[0], a[1], a[2]));
		break;
	case 'o':
		answer(open_file(a[0], a[1]));
		break;
	case 'z':
		answer(call(SYS_ftruncate, a[0], a[1], 0));
		break;
	case 'c':
		answer(cache_pages(a[0], a[1], a[2]));
		break;
	case 'g':
		answer(free_ptes());
		break;
	case 'j':
		answer(call6(SYS_prctl, PR_SET_THP_DISABLE, a[0], 0, 0, 0, 0));
		break;
	default:
		answer(perform(command, a, 0, &runs));
	}
	for (int i = 0; i < runs; i++)
		put_run('F', &failed[i]);
	if (command == 's')
		scan(1);
	if (command == 'y') {
		count = list_mappings();
		for (int i = 0; i < count; i++)
			put_run('R', &regions[i]);
	}
	put_char('\n');
	flush();
}

__attribute__((used)) void start(u64 *stack)
{
	static const struct { u64 soft, hard; } stack_limit = { 8 << 20, 8 << 20 };
	char **argv = (char **)(stack + 1);

	if (stack[0] < 2)
		call(SYS_exit, 95, 0, 0);
	for (int i = 0; argv[0][i] && i < PATH - 1; i++)
		path[i] = argv[0][i];
	if (argv[1][0] == '-') { /* first start: fix what exec inherits, and start again without ASLR */
		call(SYS_personality, ADDR_NO_RANDOMIZE, 0, 0);
		if (argv[1][1] != 't')
			call6(SYS_prctl, PR_SET_THP_DISABLE, 1, 0, 0, 0, 0);
		call(SYS_setrlimit, RLIMIT_STACK, &stack_limit, 0);
		exec_again(0);
		call(SYS_exit, 94, 0, 0);
	}
	fd_slot = FD0 + argv[1][0] - '0';
	touch_own();
	open_proc();
	clear_room();                  /* before anything else makes tables where it moves something from */
	learn_categories();
	catch_faults(11);
	catch_faults(7);
	ignore_children();
	call(SYS_pipe2, fd_pipe, O_CLOEXEC, 0);
	answer(call(SYS_getpid, 0, 0, 0));
	put_char('\n');
	flush();
	for (;;)
		run();
}
