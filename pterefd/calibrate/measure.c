// What page tables cost on the running kernel. `measure THREADS RUNS` prints a line a figure and run:
//
//     NAME RUN NANOSECONDS
//
// and lines `how NAME WORD`. calibrate.py takes medians; docs/compare.md says what each figure is. Huge pages are off:
// every figure is about PTE pages.

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define SPAN (2UL << 20)
#define SPANS 256UL      // spans of one figure about PTE pages
#define FAULT_SPANS 8UL  // filled spans of one figure about faults, a thread
#define SAMPLES 4000     // faults that are timed one by one, a thread and disturbance
#define SWAP_PAGES 4096UL
#define MAX_THREADS 64

enum { NONE, MPROTECT, DONTNEED, MUNMAP, DISTURBANCES };
static const char *const DISTURBANCE[] = {"none", "mprotect", "dontneed", "munmap"};

static int threads;
static pthread_barrier_t barrier;
static atomic_int stop;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

// `spans` spans of anonymous memory, aligned; nothing is touched. One more is mapped, so that the alignment fits in.
static char *map_spans(unsigned long spans)
{
    unsigned long size = (spans + 1) * SPAN;
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        fail("mmap");
    char *start = (char *)(((uintptr_t)at + SPAN - 1) & ~(SPAN - 1));
    if (start > at)
        munmap(at, start - at);
    if (at + size > start + spans * SPAN)
        munmap(start + spans * SPAN, at + size - (start + spans * SPAN));
    return start;
}

static inline void read_page(char *at)
{
    (void)*(volatile char *)at;
}

static inline void write_page(char *at)
{
    *(volatile char *)at = 1;
}

static void say(const char *name, int run, double ns)
{
    printf("%s %d %.3f\n", name, run, ns);
}

static unsigned long status_kb(const char *field)
{
    char line[256];
    unsigned long kb = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, field, strlen(field)))
            sscanf(line + strlen(field) + 1, "%lu", &kb);
    if (file)
        fclose(file);
    return kb;
}

// ---- faults of 1..N threads at once: the PTE pages are there ------------------------------------------------

struct faulter {
    pthread_t thread;
    int writes;
    double ns;  // a fault
    unsigned *waits;
};

static void *fault_pages(void *argument)
{
    struct faulter *f = argument;
    char *at = map_spans(FAULT_SPANS);
    for (unsigned long i = 0; i < FAULT_SPANS; i++)
        read_page(at + i * SPAN);
    pthread_barrier_wait(&barrier);
    double begin = now();
    for (unsigned long i = 0; i < FAULT_SPANS; i++)
        for (unsigned long j = 1; j < 512; j++)
            f->writes ? write_page(at + i * SPAN + j * PAGE) : read_page(at + i * SPAN + j * PAGE);
    f->ns = (now() - begin) / (FAULT_SPANS * 511);
    pthread_barrier_wait(&barrier);
    munmap(at, FAULT_SPANS * SPAN);
    return NULL;
}

static void faults(const char *name, int run, int writes)
{
    struct faulter f[MAX_THREADS];
    double sum = 0;
    pthread_barrier_init(&barrier, NULL, threads);
    for (int i = 0; i < threads; i++) {
        f[i].writes = writes;
        pthread_create(&f[i].thread, NULL, fault_pages, &f[i]);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(f[i].thread, NULL);
        sum += f[i].ns;
    }
    pthread_barrier_destroy(&barrier);
    say(name, run, sum / threads);
}

// ---- PTE pages: made, and freed while the other threads run on this mm's tables ------------------------------

static void *spin(void *argument)
{
    volatile char *at = argument;
    while (!atomic_load_explicit(&stop, memory_order_relaxed))
        for (int i = 0; i < 64; i++)
            (void)at[i * PAGE];
    return NULL;
}

static void made(int run)
{
    char *at = map_spans(SPANS);
    double t0 = now();
    for (unsigned long i = 0; i < SPANS; i++)
        read_page(at + i * SPAN);
    double t1 = now();
    for (unsigned long i = 0; i < SPANS; i++)
        read_page(at + i * SPAN + PAGE);
    double t2 = now();
    munmap(at, SPANS * SPAN);
    say("pte_alloc", run, ((t1 - t0) - (t2 - t1)) / SPANS);
}

// Spans of at with an empty PTE page each.
static void fill_empty(char *at)
{
    for (unsigned long i = 0; i < SPANS; i++) {
        char *span = at + i * SPAN;
        read_page(span);
        madvise(span, SPAN / 2, MADV_DONTNEED);
    }
}

static double time_dontneed(char *at)
{
    double begin = now();
    for (unsigned long i = 0; i < SPANS; i++)
        madvise(at + i * SPAN, SPAN, MADV_DONTNEED);
    return (now() - begin) / SPANS;
}

// munmap of every second of 2 * SPANS mappings' spans; the rest keep them apart.
static double time_munmap(int with_pages)
{
    char *at = map_spans(2 * SPANS);
    for (unsigned long i = 0; with_pages && i < SPANS; i++) {
        read_page(at + 2 * i * SPAN);
        madvise(at + 2 * i * SPAN, SPAN / 2, MADV_DONTNEED);
    }
    double begin = now();
    for (unsigned long i = 0; i < SPANS; i++)
        munmap(at + 2 * i * SPAN, SPAN);
    double ns = (now() - begin) / SPANS;
    munmap(at, 2 * SPANS * SPAN);
    return ns;
}

static int dontneed_frees(void)
{
    char *at = map_spans(SPANS);
    fill_empty(at);
    unsigned long before = status_kb("VmPTE:");
    time_dontneed(at);
    unsigned long after = status_kb("VmPTE:");
    munmap(at, SPANS * SPAN);
    return after + 4 * SPANS / 2 < before;
}

static void freed(int run, int by_dontneed)
{
    pthread_t spinners[MAX_THREADS];
    char *common = map_spans(1);
    for (int i = 0; i < 64; i++)
        write_page(common + i * PAGE);
    atomic_store(&stop, 0);
    for (int i = 1; i < threads; i++)
        pthread_create(&spinners[i], NULL, spin, common);
    if (by_dontneed) {
        char *at = map_spans(SPANS);
        fill_empty(at);
        double with = time_dontneed(at);
        double without = time_dontneed(at);
        munmap(at, SPANS * SPAN);
        say("pte_free", run, with - without);
    } else {
        say("pte_free", run, time_munmap(1) - time_munmap(0));
    }
    // mprotect that changes nothing: the lock for writing, the mapping looked up, the lock let go
    enum { CALLS = 20000 };
    double t0 = now();
    for (int i = 0; i < CALLS; i++)
        mprotect(common, PAGE, PROT_READ | PROT_WRITE);
    double t1 = now();
    for (int i = 0; i < CALLS; i++)
        syscall(SYS_getppid);
    double t2 = now();
    say("lock", run, ((t1 - t0) - (t2 - t1)) / CALLS);
    atomic_store(&stop, 1);
    for (int i = 1; i < threads; i++)
        pthread_join(spinners[i], NULL);
    munmap(common, SPAN);
}

// ---- calls over whole spans of 512 pages, and the faults of other threads meanwhile ---------------------------

static void fill(char *at, unsigned long spans)
{
    for (unsigned long i = 0; i < spans * 512; i++)
        write_page(at + i * PAGE);
}

static void calls(int run)
{
    char *at = map_spans(FAULT_SPANS);
    fill(at, FAULT_SPANS);
    double t0 = now();
    mprotect(at, FAULT_SPANS * SPAN, PROT_READ);
    double t1 = now();
    mprotect(at, FAULT_SPANS * SPAN, PROT_READ | PROT_WRITE);
    double t2 = now();
    madvise(at, FAULT_SPANS * SPAN, MADV_DONTNEED);
    double t3 = now();
    fill(at, FAULT_SPANS);
    double t4 = now();
    munmap(at, FAULT_SPANS * SPAN);
    double t5 = now();
    say("span_mprotect", run, (t2 - t0) / 2 / FAULT_SPANS);
    (void)t1;
    say("span_dontneed", run, (t3 - t2) / FAULT_SPANS);
    say("span_munmap", run, (t5 - t4) / FAULT_SPANS);
}

static void *disturb(void *argument)
{
    int what = *(int *)argument;
    char *at = map_spans(FAULT_SPANS);
    fill(at, FAULT_SPANS);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        if (what == MPROTECT) {
            mprotect(at, FAULT_SPANS * SPAN, PROT_READ);
            mprotect(at, FAULT_SPANS * SPAN, PROT_READ | PROT_WRITE);
        } else if (what == DONTNEED) {
            for (unsigned long i = 0; i < FAULT_SPANS; i++)
                write_page(at + i * SPAN);
            madvise(at, FAULT_SPANS * SPAN, MADV_DONTNEED);
        } else {
            char *more = map_spans(FAULT_SPANS);
            for (unsigned long i = 0; i < FAULT_SPANS; i++)
                write_page(more + i * SPAN);
            munmap(more, FAULT_SPANS * SPAN);
        }
    }
    munmap(at, FAULT_SPANS * SPAN);
    return NULL;
}

static void *timed_faults(void *argument)
{
    struct faulter *f = argument;
    char *at = map_spans(FAULT_SPANS);
    for (unsigned long i = 0; i < FAULT_SPANS; i++)
        read_page(at + i * SPAN);
    pthread_barrier_wait(&barrier);
    for (unsigned long k = 0; k < SAMPLES; k++) {
        char *page = at + k / 511 * SPAN + (k % 511 + 1) * PAGE;  // not a span's first
        double begin = now();
        write_page(page);
        f->waits[k] = (unsigned)(now() - begin);
    }
    munmap(at, FAULT_SPANS * SPAN);
    return NULL;
}

static int by_size(const void *a, const void *b)
{
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return (x > y) - (x < y);
}

static void latency(int run, int what)
{
    _Static_assert(SAMPLES <= FAULT_SPANS * 511, "a sample is a page of its own");
    struct faulter f[MAX_THREADS];
    pthread_t disturber;
    unsigned *waits = malloc(sizeof *waits * SAMPLES * threads);
    char name[64];
    if (!waits)
        fail("malloc");
    memset(waits, 0, sizeof *waits * SAMPLES * threads);
    atomic_store(&stop, 0);
    if (what != NONE) {
        pthread_create(&disturber, NULL, disturb, &what);
        usleep(5000);
    }
    pthread_barrier_init(&barrier, NULL, threads);
    for (int i = 0; i < threads; i++) {
        f[i].waits = waits + i * SAMPLES;
        pthread_create(&f[i].thread, NULL, timed_faults, &f[i]);
    }
    for (int i = 0; i < threads; i++)
        pthread_join(f[i].thread, NULL);
    pthread_barrier_destroy(&barrier);
    atomic_store(&stop, 1);
    if (what != NONE)
        pthread_join(disturber, NULL);
    qsort(waits, SAMPLES * threads, sizeof *waits, by_size);
    snprintf(name, sizeof name, "latency_%s_p50", DISTURBANCE[what]);
    say(name, run, waits[SAMPLES * threads / 2]);
    snprintf(name, sizeof name, "latency_%s_p99", DISTURBANCE[what]);
    say(name, run, waits[SAMPLES * threads * 99 / 100]);
    free(waits);
}

// ---- counts, walkers, rmap locks: the instructions that they are, on a line of this thread's cache --------------

static void instructions(int run)
{
    enum { TIMES = 1000000 };
    static volatile unsigned long plain;
    static atomic_ulong counted = 1;
    double t0 = now();
    for (int i = 0; i < TIMES; i++)
        plain += 1;
    double t1 = now();
    for (int i = 0; i < TIMES; i++)
        atomic_fetch_add(&counted, 1);
    double t2 = now();
    for (int i = 0; i < TIMES; i++) {  // atomic_inc_not_zero, atomic_dec_and_test
        unsigned long old = atomic_load(&counted);
        while (old && !atomic_compare_exchange_weak(&counted, &old, old + 1))
            ;
        if (atomic_fetch_sub(&counted, 1) == 0)
            abort();
    }
    double t3 = now();
    for (int i = 0; i < TIMES; i++) {  // down_write, up_write of a rw_semaphore that nobody wants
        unsigned long old = counted;
        atomic_compare_exchange_strong(&counted, &old, old | 1);
        atomic_fetch_sub(&counted, 0);
    }
    double t4 = now();
    say("refcount", run, (t1 - t0) / TIMES);
    say("atomic_refcount", run, (t2 - t1) / TIMES);
    say("walker", run, (t3 - t2) / TIMES);
    say("rmap_lock", run, (t4 - t3) / TIMES);
}

// ---- swap ---------------------------------------------------------------------------------------------------

static void swap(int run)
{
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
    unsigned long spans = SWAP_PAGES / 512;
    char *at = map_spans(spans);
    unsigned seed = 1 + run;
    for (unsigned long i = 0; i < SWAP_PAGES * PAGE / sizeof seed; i++)
        ((unsigned *)at)[i] = seed = seed * 1103515245 + 12345;  // nothing that could be packed
    unsigned long before = status_kb("VmSwap:");
    double t0 = now();
    madvise(at, spans * SPAN, MADV_PAGEOUT);
    double t1 = now();
    unsigned long pages = (status_kb("VmSwap:") - before) / 4;
    if (pages < SWAP_PAGES / 2) {
        munmap(at, spans * SPAN);
        return;
    }
    double t2 = now();
    for (unsigned long i = 0; i < SWAP_PAGES; i++)
        read_page(at + i * PAGE);
    double t3 = now();
    munmap(at, spans * SPAN);
    say("swap_out", run, (t1 - t0) / pages);
    say("swap_in", run, (t3 - t2) / pages);
}

int main(int argc, char **argv)
{
    if (argc != 3 || (threads = atoi(argv[1])) < 1 || threads > MAX_THREADS) {
        fprintf(stderr, "usage: measure THREADS RUNS\n");
        return 2;
    }
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    int runs = atoi(argv[2]);
    int by_dontneed = dontneed_frees();
    printf("how pte_free %s\n", by_dontneed ? "madvise" : "munmap");
    for (int run = 0; run < runs; run++) {
        faults("fault", run, 1);
        faults("zero_fault", run, 0);
        freed(run, by_dontneed);
        for (int what = 0; what < DISTURBANCES; what++)
            latency(run, what);
        if (threads > 1)
            continue;
        made(run);
        calls(run);
        instructions(run);
        swap(run);
    }
    return 0;
}
