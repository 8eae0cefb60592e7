// Answers lines of seed and rounds: short ones by the event loop, long ones by worker threads. A timer runs beside, and a client
// of its own asks an HTTP server of the same process over a path, with a connection that is kept.
const { createHash } = require('crypto');
const http = require('http');
const net = require('net');
const readline = require('readline');
const { Worker, isMainThread, parentPort } = require('worker_threads');

function chain(seed, rounds) {
  let digest = Buffer.from(seed);
  for (let i = 0; i < rounds; i++) digest = createHash('sha256').update(digest).digest();
  return digest.toString('hex');
}

if (!isMainThread) {
  parentPort.on('message', ({ id, seed, rounds }) => parentPort.postMessage({ id, answer: chain(seed, rounds) }));
} else {
  const waiting = new Map();
  const workers = [1, 2].map(() => new Worker(__filename));
  for (const worker of workers) {
    worker.on('message', ({ id, answer }) => { waiting.get(id)(answer); waiting.delete(id); });
  }
  let requests = 0;
  function answer(seed, rounds) {
    if (rounds < 1000) return Promise.resolve(chain(seed, rounds));
    return new Promise((resolve) => {
      const id = requests++;
      waiting.set(id, resolve);
      workers[id % workers.length].postMessage({ id, seed, rounds });
    });
  }

  const server = net.createServer(async (socket) => {
    socket.on('error', () => {});
    for await (const line of readline.createInterface({ input: socket })) {
      const [seed, rounds] = line.split(' ');
      socket.write(await answer(seed, Number(rounds)) + '\n');
    }
  });

  let asked = 0;
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const inner = http.createServer((request, response) => response.end(chain(request.url, 10)));
  inner.keepAliveTimeout = 0;
  inner.listen('inner.sock');
  let connections = 0;
  inner.on('connection', () => { connections++; });
  setInterval(() => {
    const path = `/${asked++}`;
    http.get({ socketPath: 'inner.sock', path, agent }, (response) => {
      let body = '';
      response.on('data', (data) => { body += data; });
      response.on('end', () => {
        if (body !== chain(path, 10) || connections !== 1) {
          console.log(`wrong: ${path} ${body} over ${connections} connections`);
          process.exit(1);
        }
      });
    }).on('error', (error) => { console.log(String(error)); process.exit(1); });
  }, 20);

  const [kind, ...rest] = process.argv[2].split(':');
  if (kind === 'unix') server.listen(rest[0]);
  else server.listen(Number(rest[1]), rest[0]);
}
