/* Writes to another process's memory, which that cannot know of: single bytes with process_vm_writev(2), each place once,
 * at random within 128 MiB that move through the range.
 *
 *     writer PID START LENGTH SECONDS
 *
 * Then it reads all of them again, and says how many it wrote and how many are lost. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int count, char **words)
{
	int pid = atoi(words[1]);
	unsigned long start = strtoul(words[2], NULL, 16), length = strtoul(words[3], NULL, 0);
	double seconds = atof(words[4]), begin = now(), passed;
	unsigned long window = 128UL << 20;
	unsigned char *known = calloc(length, 1), got; /* few of its pages are ever touched */
	uint64_t random = 88172645463325252ULL;
	long written = 0, lost = 0;

	(void)count;
	while ((passed = now() - begin) < seconds) {
		unsigned long base = (length - window) * (passed / seconds);

		for (int i = 0; i < 20; i++) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			unsigned long at = base + random % window;
			unsigned char byte = 1 + (random >> 40) % 255;
			struct iovec here = { &byte, 1 }, there = { (void *)(start + at), 1 };

			if (known[at])
				continue;
			if (process_vm_writev(pid, &here, 1, &there, 1, 0) != 1)
				continue;
			known[at] = byte;
			written++;
		}
		usleep(100);
	}
	for (unsigned long at = 0; at < length; at++)
		if (known[at]) {
			struct iovec here = { &got, 1 }, there = { (void *)(start + at), 1 };

			if (process_vm_readv(pid, &here, 1, &there, 1, 0) != 1 || got != known[at])
				lost++;
		}
	printf("%ld written, %ld lost\n", written, lost);
	return 0;
}
