/* A process whose PTE pages are known: EMPTY, ZERO, MIXED and DATA spans in turns, as many as its arguments say. On each
 * line of its input it checks all of its memory, and says "fine"; at the end of the input it ends. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define SPAN (2UL << 20)
#define PAGE 4096

enum { EMPTY, ZERO, MIXED, DATA };

static volatile unsigned long spins;

static void *spin(void *unused)
{
	for (;;)
		spins++;
	return unused;
}

int main(int count, char **words)
{
	long kinds[4], total = 0, n = 0;
	static unsigned char *begin;
	char *kind, line[64];
	pthread_t thread;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	for (int i = 0; i < 4; i++)
		total += kinds[i] = atol(words[1 + i]);
	kind = malloc(total);
	begin = mmap(NULL, (total + 1) * SPAN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	begin = (unsigned char *)(((unsigned long)begin + SPAN - 1) / SPAN * SPAN);
	for (int i = 0; n < total; i = (i + 1) % 4)
		if (kinds[i]-- > 0)
			kind[n++] = i;
	for (long i = 0; i < total; i++) {
		volatile unsigned char *span = begin + i * SPAN;

		for (unsigned long page = 0; page < 512; page++)
			if (kind[i] == ZERO || (kind[i] == MIXED && page % 3))
				(void)span[page * PAGE];
		if (kind[i] == EMPTY || kind[i] == DATA)
			span[i % 512 * PAGE] = 1 + i % 255;
		if (kind[i] == EMPTY)
			madvise((void *)(span + i % 512 * PAGE), PAGE, MADV_DONTNEED);
	}
	if (count > 5) {
		pthread_create(&thread, NULL, spin, NULL);
		while (!spins)
			usleep(1000);
	}
	printf("%lx\n", (unsigned long)begin);
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		for (long i = 0; i < total; i++)
			if (kind[i] == DATA && begin[i * SPAN + i % 512 * PAGE] != 1 + i % 255) {
				printf("span %ld is not what it was\n", i);
				return 1;
			}
		if (line[0] == 'r')
			for (long i = 0; i < total; i++)
				for (unsigned long at = 0; at < SPAN; at += PAGE)
					if (begin[i * SPAN + at] && kind[i] != DATA) {
						printf("span %ld holds something\n", i);
						return 1;
					}
		printf("fine\n");
		fflush(stdout);
	}
	return 0;
}
