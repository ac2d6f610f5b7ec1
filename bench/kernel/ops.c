/* The operations of a benchmark on the running kernel, and how long they take.
 *
 *     ops FILE [PRIME]
 *
 * FILE: records of 24 bytes, as bench/suite.py writes them: op, address, length (or the new address). The first PRIME of
 * them are not timed. Prints the nanoseconds of the others, and VmPTE in kB before the first record and after the last.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAP, READ, WRITE, DONTNEED, LAZYFREE, UNMAP, MOVE, READ_ONLY, READ_WRITE, FORK };

struct record {
	uint64_t op, addr, arg;
};

static pid_t child;

static void failed(const char *what, const struct record *r)
{
	fprintf(stderr, "ops: %s of %llx, %llx: %s\n", what, (unsigned long long)r->addr, (unsigned long long)r->arg,
		strerror(errno));
	if (child)
		kill(child, SIGKILL);
	exit(1);
}

static long vm_pte(void)
{
	char text[4096];
	int file = open("/proc/self/status", O_RDONLY);
	ssize_t n = read(file, text, sizeof text - 1);
	char *at;

	text[n > 0 ? n : 0] = 0;
	close(file);
	at = strstr(text, "VmPTE:");
	return at ? atol(at + 6) : -1;
}

static void carry_out(const struct record *r, const struct record *end)
{
	char sum = 0;

	for (; r < end; r++) {
		char *at = (char *)r->addr;

		switch (r->op) {
		case MAP:
			if (mmap(at, r->arg, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) != at)
				failed("mmap", r);
			break;
		case READ:
			for (char *page = at; page < at + r->arg; page += 4096)
				sum += *(volatile char *)page;
			break;
		case WRITE:
			for (char *page = at; page < at + r->arg; page += 4096)
				*(volatile char *)page = 1;
			break;
		case DONTNEED:
			if (madvise(at, r->arg, MADV_DONTNEED))
				failed("MADV_DONTNEED", r);
			break;
		case LAZYFREE:
			if (madvise(at, r->arg, MADV_FREE))
				failed("MADV_FREE", r);
			break;
		case UNMAP:
			if (munmap(at, r->arg))
				failed("munmap", r);
			break;
		case MOVE:
			if (mremap(at, 2 << 20, 2 << 20, MREMAP_MAYMOVE | MREMAP_FIXED, r->arg) == MAP_FAILED)
				failed("mremap", r);
			break;
		case READ_ONLY:
		case READ_WRITE:
			if (mprotect(at, r->arg, r->op == READ_ONLY ? PROT_READ : PROT_READ | PROT_WRITE))
				failed("mprotect", r);
			break;
		case FORK:
			child = fork();
			if (child < 0)
				failed("fork", r);
			if (child == 0) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				for (;;)
					pause();
			}
			break;
		}
	}
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int count, char **words)
{
	struct stat status;
	struct record *records;
	int file = count > 1 ? open(words[1], O_RDONLY) : -1;
	long number, prime = count > 2 ? atol(words[2]) : 0, before, after;
	double began, took;

	if (file < 0 || fstat(file, &status)) {
		fprintf(stderr, "usage: ops FILE [PRIME]\n");
		return 2;
	}
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	records = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
	number = status.st_size / sizeof *records;
	before = vm_pte();
	before = vm_pte(); /* its own buffer is there now */
	carry_out(records, records + prime);
	began = seconds();
	carry_out(records + prime, records + number);
	took = seconds() - began;
	after = vm_pte();
	printf("%.0f %ld %ld\n", took, before, after);
	if (child) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	return 0;
}
