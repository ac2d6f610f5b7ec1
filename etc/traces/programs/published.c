#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#define MIB (1UL << 20)
int main(int argc, char **argv)
{
	unsigned long gib = argc > 1 ? strtoul(argv[1], NULL, 0) : 50;
	unsigned long piece = (argc > 2 ? strtoul(argv[2], NULL, 0) : 2) * MIB;
	unsigned long size = gib << 30;
	char *buf = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (buf == MAP_FAILED) { perror("mmap"); return 1; }
	for (unsigned long at = 0; at < size; at += 2 * MIB) {
		memset(buf + at, 1, 2 * MIB);
		for (unsigned long part = at; part < at + 2 * MIB; part += piece)
			if (madvise(buf + part, piece, MADV_DONTNEED)) { perror("madvise"); return 1; }
	}
	return 0;
}
