#!/bin/bash
# A compilation with all its children: the driver, cc1, as, collect2, ld; two at a time under make.
set -euo pipefail
export TMPDIR=$PWD
for name in one two three four; do
    cat >"$name.c" <<CODE
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
int $name(int n) {
    int *v = malloc(n * sizeof *v), sum = 0;
    for (int i = 0; i < n; i++) v[i] = (i * 7919) % 1000;
    qsort(v, n, sizeof *v, compare);
    for (int i = 0; i < n; i++) sum += v[i] * i + (int)sqrt(i);
    free(v);
    return sum;
}
CODE
done
printf '#include <stdio.h>\nint one(int), two(int), three(int), four(int);\nint main(void) { printf("%%d\\n", one(9) + two(9) + three(9) + four(9)); return 0; }\n' >main.c
printf 'OBJECTS = main.o one.o two.o three.o four.o\nprogram: $(OBJECTS)\n\tgcc -o $@ $(OBJECTS) -lm\n%%.o: %%.c\n\tgcc -O2 -g -c -o $@ $<\n' >Makefile
make -s -j2
./program >/dev/null
