#!/bin/bash
# Java: the compiler's own work of the JVM, several collectors, threads, a heap that grows and is collected.
set -euo pipefail
export TMPDIR=$PWD
cat >Churn.java <<'CODE'
import java.util.*;
public class Churn {
    static int work(int seed) {
        Map<Integer, byte[]> kept = new HashMap<>();
        Random draw = new Random(seed);
        for (int i = 0; i < 30000; i++) kept.put(draw.nextInt(2000), new byte[draw.nextInt(8000)]);
        return kept.size();
    }
    public static void main(String[] arguments) throws Exception {
        List<Thread> threads = new ArrayList<>();
        for (int i = 0; i < 4; i++) { final int seed = i; Thread t = new Thread(() -> work(seed)); t.start(); threads.add(t); }
        for (Thread t : threads) t.join();
        System.gc();
    }
}
CODE
for collector in Serial Parallel G1; do
    java -Xmx128m -XX:+PerfDisableSharedMem -XX:+Use${collector}GC Churn.java
done
