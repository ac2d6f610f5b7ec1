#!/usr/bin/env node
// Node: objects, strings and buffers come and go, a worker thread beside it, regular expressions, JSON.
"use strict";
const { Worker, isMainThread } = require("worker_threads");

function churn(rounds) {
    let kept = [];
    for (let round = 0; round < rounds; round++) {
        const made = [];
        for (let i = 0; i < 20000; i++) made.push({ id: i, name: "name " + (i * 7919) % 20000, parts: [i, i + 1] });
        kept.push(JSON.stringify(made));
        if (kept.length > 4) kept = kept.slice(2);
        const buffer = Buffer.alloc(4 << 20, round);
        if (buffer.indexOf(255) !== -1 && round < 250) throw new Error("buffer");
        made.sort((a, b) => (a.name < b.name ? -1 : 1));
    }
    return kept.length;
}

if (isMainThread) {
    const worker = new Worker(__filename);
    worker.on("exit", () => process.exit(churn(5) > 0 ? 0 : 1));
    churn(10);
} else {
    churn(6);
}
