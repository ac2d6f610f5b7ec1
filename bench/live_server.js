// Both ends of an http server for bench/live_servers.py:
//
//     node live_server.js serve SOCKET
//     node live_server.js load SOCKET|PORT CLIENTS SECONDS
//
// The server keeps what it answers in a cache, which it drops every other second: small objects of V8's heap, and
// buffers of malloc's. The load is one request at a time of each client; it checks every answer.
"use strict";
const http = require("http");
const [, , mode, socketPath, clients, seconds] = process.argv;
const BYTES = 20000;

function serve() {
  let cache = [];
  setInterval(() => { cache = []; }, 2000);
  http.createServer((request, response) => {
    const number = Number(request.url.slice(1));
    const body = Buffer.alloc(BYTES, number % 251);
    cache.push(body, Array.from({ length: 100 }, (_, i) => ({ number, i })));
    response.end(body);
  }).listen(socketPath);
}

function load() {
  const agent = new http.Agent({ keepAlive: true, maxSockets: Number(clients) });
  const where = Number(socketPath) ? { host: "127.0.0.1", port: Number(socketPath) } : { socketPath };
  const end = Date.now() + 1000 * Number(seconds);
  const times = [], errors = [];
  const began = Date.now();
  let number = 0, running = Number(clients);
  function over() {
    if (--running) return;
    const took = (Date.now() - began) / 1000;
    times.sort((a, b) => a - b);
    const p99 = times[Math.floor(times.length * 0.99)];
    console.log(JSON.stringify({ rate: times.length / took, p99, errors: errors.slice(0, 20) }));
    process.exit(0);
  }
  function ask() {
    if (Date.now() > end) return over();
    const mine = number++;
    const start = process.hrtime.bigint();
    http.get({ ...where, path: `/${mine}`, agent }, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () => {
        times.push(Number(process.hrtime.bigint() - start) / 1e6);
        if (!Buffer.concat(parts).equals(Buffer.alloc(BYTES, mine % 251))) errors.push(`answer ${mine} is wrong`);
        ask();
      });
    }).on("error", (error) => { errors.push(String(error)); ask(); });
  }
  for (let i = 0; i < Number(clients); i++) ask();
}

if (mode === "serve") serve();
else load();
