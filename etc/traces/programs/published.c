/*
 * The program of the mails of 2021 and of the commit that brought PT_RECLAIM: published GIB PIECE.
 *
 * Maps GIB GiB; for each 2 MiB of them in turn: touches the 2 MiB, discards them by MADV_DONTNEED in pieces of PIECE
 * MiB (2: as in the mails; 1: no call covers a whole page table). Prints VmPTE before and after, in kB.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1UL << 20)

static char status[4096];

static long vm_pte(void)
{
	int fd = open("/proc/self/status", O_RDONLY);
	ssize_t length = read(fd, status, sizeof(status) - 1);
	char *line;

	close(fd);
	if (length <= 0)
		return -1;
	status[length] = 0;
	line = strstr(status, "VmPTE:");
	return line ? strtol(line + 6, NULL, 10) : -1;
}

int main(int argc, char **argv)
{
	unsigned long size, piece;
	long before, after;
	char *memory;

	if (argc != 3)
		return 2;
	size = strtoul(argv[1], NULL, 10) << 30;
	piece = strtoul(argv[2], NULL, 10) * MIB;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	before = vm_pte();
	for (unsigned long at = 0; at < size; at += 2 * MIB) {
		memset(memory + at, 1, 2 * MIB);
		for (unsigned long part = at; part < at + 2 * MIB; part += piece)
			if (madvise(memory + part, piece, MADV_DONTNEED))
				return 1;
	}
	after = vm_pte();
	printf("%ld %ld\n", before, after);
	return 0;
}
