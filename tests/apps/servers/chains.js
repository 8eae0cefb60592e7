// Answers lines of seed and rounds: short ones by the event loop, long ones by worker threads; and how often its timers have run, how many
// pages its HTTP client has fetched, and how many pieces of a page that never ends. The client's connections are kept, and its server is
// in the same process: with a path where the program listens on a path, over TCP otherwise.
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

function fail(what) {
  console.log(`wrong: ${what}`);
  process.exit(1);
}

const counts = { ticks: 0, fetched: 0, chunks: 0 };

// Three timers of different periods: the slow ones must not run more often than the time that they have had allows.
function startTimers() {
  const start = Date.now();
  let slow = 0;
  setInterval(() => {
    if (++slow * 190 > Date.now() - start + 190) fail(`a timer ran ${slow} times in ${Date.now() - start} ms`);
  }, 200);
  setInterval(() => { counts.ticks++; }, 10);
  (function again() { setTimeout(() => { counts.ticks++; again(); }, 35); })();
}

function startHttp(unix) {
  let connections = 0;
  const server = http.createServer((request, response) => {
    if (request.url !== '/endless') return response.end(chain(request.url, 10));
    let number = 0;
    return setInterval(() => response.write(`${number++}\n`), 15);
  });
  server.keepAliveTimeout = 0;
  server.requestTimeout = 0;
  server.on('connection', () => { if (++connections > 2) fail('the client has lost a connection'); });
  server.listen(unix ? 'inner.sock' : { host: '127.0.0.1', port: 0 }, () => {
    const place = unix ? { socketPath: 'inner.sock' } : { host: '127.0.0.1', port: server.address().port };
    const ask = (options, heard) => http.get({ ...place, ...options }, heard).on('error', fail);
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    (function fetch() {
      const path = `/${counts.fetched}`;
      ask({ path, agent }, (response) => {
        let body = '';
        response.on('data', (data) => { body += data; });
        response.on('end', () => {
          if (body !== chain(path, 10)) fail(`${path} is ${body}`);
          counts.fetched++;
          setTimeout(fetch, 5);
        });
      });
    })();
    ask({ path: '/endless', agent: false }, (response) => {
      readline.createInterface({ input: response }).on('line', (line) => {
        if (Number(line) !== counts.chunks++) fail(`${line} after ${counts.chunks} lines`);
      });
      response.on('close', () => fail('the page that never ends has ended'));
    });
  });
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
  function answer(line) {
    if (line in counts) return counts[line];
    const [seed, rounds] = line.split(' ');
    if (rounds < 1000) return chain(seed, Number(rounds));
    return new Promise((resolve) => {
      const id = requests++;
      waiting.set(id, resolve);
      workers[id % workers.length].postMessage({ id, seed, rounds: Number(rounds) });
    });
  }

  const server = net.createServer(async (socket) => {
    socket.on('error', () => {});
    for await (const line of readline.createInterface({ input: socket })) socket.write(`${await answer(line)}\n`);
  });

  const [kind, ...rest] = process.argv[2].split(':');
  startTimers();
  startHttp(kind === 'unix');
  if (kind === 'unix') server.listen(rest[0]);
  else server.listen(Number(rest[1]), rest[0]);
}
