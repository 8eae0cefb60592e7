"""Conversations with servers: generators that yield after each exchange whose answer was the right one.

Each knows what the server must answer: its state is in the server's memory, and a server that was restored with anything lost,
doubled or out of order gives another answer. Waiting calls are made on one connection and answered through another.
"""
import hashlib
import random
import socket
import ssl
import subprocess
import time

PATIENCE = 60  # seconds for an answer: the server is dead for a while between dump and restore


def opened(address):
    """A connection to a server that may have to start first."""
    kind, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    family, target = (socket.AF_UNIX, rest) if kind == "unix" else (socket.AF_INET, (host, int(port)))
    deadline = time.monotonic() + PATIENCE
    while True:
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(target)
            return connection
        except (ConnectionRefusedError, FileNotFoundError):
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Stream:
    """A connection with what text protocols need."""

    def __init__(self, address, wrap=lambda connection: connection):
        self.socket = wrap(opened(address))
        self.reader = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def line(self):
        line = self.reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError(f"the connection ended after {line!r}")
        return line.rstrip(b"\r\n")

    def exactly(self, size):
        data = self.reader.read(size)
        if len(data) != size:
            raise EOFError(f"the connection ended after {len(data)} of {size} bytes")
        return data


def require(got, expected, what):
    if got != expected:
        raise AssertionError(f"{what}: got {str(got)[:200]!r} instead of {str(expected)[:200]!r}")


# Redis: https://redis.io/docs/reference/protocol-spec


class Redis(Stream):
    def ask(self, *words):
        self.put(*words)
        return self.answer()

    def put(self, *words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self.send(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))

    def answer(self):
        line = self.line()
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise AssertionError(f"the server answers {line!r}")
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.exactly(int(rest) + 2)[:-2]
        return None if rest == b"-1" else [self.answer() for _ in range(int(rest))]


def redis_counter(address, name):
    server, count = Redis(address), 0
    server.ask("DEL", name)
    while True:
        for _ in range(50):
            server.put("INCR", name)
        for _ in range(50):
            count += 1
            require(server.answer(), count, "INCR")
        yield


def redis_values(address, seed):
    """Values of all sizes, those of the last rounds read again and again."""
    server, chance, kept = Redis(address), random.Random(seed), {}
    while True:
        key = f"value-{seed}-{chance.randrange(200)}"
        kept[key] = chance.randbytes(chance.choice((3, 100, 5_000, 200_000)))
        require(server.ask("SET", key, kept[key]), b"OK", "SET")
        keys = chance.sample(sorted(kept), min(len(kept), 5))
        require(server.ask("MGET", *keys), [kept[key] for key in keys], "MGET")
        yield


def redis_waiting(address):
    waiter, other, count = Redis(address), Redis(address), 0
    while True:
        waiter.put("BLPOP", "queue", 0)
        time.sleep(0.05)
        other.ask("RPUSH", "queue", count)
        require(waiter.answer(), [b"queue", str(count).encode()], "BLPOP")
        count += 1
        yield


def redis_subscription(address):
    subscriber, publisher, count = Redis(address), Redis(address), 0
    require(subscriber.ask("SUBSCRIBE", "news"), [b"subscribe", b"news", 1], "SUBSCRIBE")
    while True:
        require(publisher.ask("PUBLISH", "news", count), 1, "PUBLISH")
        time.sleep(0.01)
        require(subscriber.answer(), [b"message", b"news", str(count).encode()], "a message")
        count += 1
        yield


def redis_transaction(address):
    """MULTI stays open for a while: the queued commands are memory of the server that belongs to the connection."""
    server, count = Redis(address), 0
    server.ask("DEL", "doubled", "once")
    while True:
        server.ask("WATCH", "once")
        server.ask("MULTI")
        server.ask("INCRBY", "doubled", 2)
        time.sleep(0.1)
        server.ask("INCR", "once")
        count += 1
        require(server.ask("EXEC"), [2 * count, count], "EXEC")
        yield


def redis_expiry(address):
    """Keys end at a time of the wall clock, here far enough in the future to outlive every cycle."""
    server, count = Redis(address), 0
    while True:
        require(server.ask("SET", f"mortal-{count}", count, "PX", 60), b"OK", "SET PX")
        require(server.ask("SET", f"lasting-{count}", count, "EX", 3600), b"OK", "SET EX")
        time.sleep(0.08)
        require(server.ask("GET", f"mortal-{count}"), None, "a key that has expired")
        require(server.ask("GET", f"lasting-{count}"), str(count).encode(), "a key that lasts")
        count += 1
        yield


def redis_saving(address):
    """A child of the server always writes the memory, as it was when it forked, to a file."""
    server = Redis(address)
    while True:
        # "SCHEDULE": what has ended may not have been reaped yet.
        require(server.ask("BGSAVE", "SCHEDULE")[:10], b"Background", "BGSAVE")
        while (state := server.ask("INFO", "persistence")).find(b"rdb_bgsave_in_progress:1") >= 0:
            time.sleep(0.05)
            yield
        if b"rdb_last_bgsave_status:ok" not in state:
            raise AssertionError(f"BGSAVE has failed: {state}")
        yield


def redis(address):
    return [("counter", redis_counter(address, "counter")), ("counter-2", redis_counter(address, "counter-2")),
            ("values", redis_values(address, 1)), ("values-2", redis_values(address, 2)), ("waiting", redis_waiting(address)),
            ("subscription", redis_subscription(address)), ("transaction", redis_transaction(address)),
            ("expiry", redis_expiry(address)), ("saving", redis_saving(address))]


# memcached: doc/protocol.txt of its sources


def memcached_values(address, seed):
    server, chance, kept = Stream(address), random.Random(seed), {}
    while True:
        for _ in range(5):
            key = f"key-{seed}-{chance.randrange(100)}".encode()
            kept[key] = chance.randbytes(chance.choice((2, 90, 3_000, 300_000)))
            server.send(b"set %s %d 0 %d\r\n%s\r\n" % (key, seed, len(kept[key]), kept[key]))
            require(server.line(), b"STORED", "set")
        server.send(b"get %s\r\n" % b" ".join(sorted(kept)[:8]))
        for key in sorted(kept)[:8]:
            require(server.line(), b"VALUE %s %d %d" % (key, seed, len(kept[key])), "get")
            require(server.exactly(len(kept[key]) + 2)[:-2], kept[key], f"the value of {key}")
        require(server.line(), b"END", "get")
        yield


def memcached_counter(address):
    """One connection counts, another takes the token of each value and may store just once with it."""
    counter, swapper, count = Stream(address), Stream(address), 0
    counter.send(b"set counted 0 0 1\r\n0\r\n")
    require(counter.line(), b"STORED", "set")
    while True:
        count += 1
        counter.send(b"incr counted 1\r\n")
        require(counter.line(), b"%d" % count, "incr")
        swapper.send(b"gets counted\r\n")
        token = swapper.line().split()[-1]
        require(swapper.line().strip(), b"%d" % count, "gets")
        require(swapper.line(), b"END", "gets")
        count += 7
        for answer in (b"STORED", b"EXISTS"):
            swapper.send(b"cas counted 0 0 %d %s\r\n%d\r\n" % (len(str(count)), token, count))
            require(swapper.line(), answer, "cas")
        yield


def memcached(address):
    return [("counter", memcached_counter(address))] + [(f"values-{n}", memcached_values(address, n)) for n in range(4)]


# HTTP/1.1 with connections that are kept


class Http(Stream):
    def ask(self, path, body=None):
        length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
        self.send(b"%s %s HTTP/1.1\r\nHost: stasis\r\n%s\r\n" % (b"GET" if body is None else b"POST", path.encode(), length) + (body or b""))
        return self.head()

    def head(self):
        status = self.line()
        require(status.split()[1], b"200", "the status")
        length = None
        while header := self.line():
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            require(name.lower() == b"connection" and value.strip().lower() == b"close", False, "the server closes the connection")
        return length


def nginx_small(address, path):
    server = Http(address)
    while True:
        for number in range(10):
            expected = f"page {number}\n".encode() * 10
            require(server.exactly(server.ask(f"/{path}/{number}")), expected, f"page {number}")
        yield


def nginx_download(address, slice_size):
    """A file that comes slowly: the server's rate is limited, and this is a slow reader."""
    server = Http(address)
    while True:
        left = server.ask("/slow/big")
        received = hashlib.sha256()
        while left:
            data = server.exactly(min(left, slice_size))
            received.update(data)
            left -= len(data)
            time.sleep(0.01)
            yield
        require(received.hexdigest(), open("big.sum").read().split()[0], "the sum of the download")


def nginx(address):
    return [(f"page-{n}", nginx_small(address, "pages")) for n in range(4)] + [("proxied", nginx_small(address, "proxied"))] + \
        [(f"download-{n}", nginx_download(address, 20_000 * n)) for n in range(1, 4)]


def pages(address):
    return [(f"page-{n}", nginx_small(address, "pages")) for n in range(4)]


# Servers of language runtimes all speak one protocol: a line of seed and rounds is answered by that many rounds of SHA-256.


def chain(seed, rounds):
    digest = seed.encode()
    for _ in range(rounds):
        digest = hashlib.sha256(digest).digest()
    return digest.hex()


def chain_of(address, number, most):
    server, count = Stream(address), 0
    while True:
        count += 1
        seed, rounds = f"seed-{number}-{count}", 1 + (count * 7919 + number) % most
        server.send(f"{seed} {rounds}\n".encode())
        require(server.line().decode(), chain(seed, rounds), f"{rounds} rounds of {seed}")
        yield


def chains(address):
    return [(f"chain-{number}", chain_of(address, number, most)) for number, most in enumerate((3, 300, 3000, 30_000))]


def always_more(address, question):
    """A counter of the server's that goes up whenever it has done something."""
    server, before = Stream(address), -1
    while True:
        server.send(question + b"\n")
        count = int(server.line())
        if count < before:
            raise AssertionError(f"{question}: {count} after {before}")
        time.sleep(0.02)
        if count > before:
            before = count
            yield


def java(address):
    return chains(address) + [(question, always_more(address, question.encode())) for question in ("compiled", "collected", "loaded")]


def node(address):
    return chains(address) + [(question, always_more(address, question.encode())) for question in ("ticks", "fetched", "chunks")]


# `openssl s_server -rev` answers each line with the line reversed.


def tls_lines(address, number):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations("certificate.pem")
    server, chance = Stream(address, lambda connection: context.wrap_socket(connection)), random.Random(number)
    while True:
        line = chance.randbytes(chance.randrange(1, 4000)).hex().encode()
        server.send(line + b"\n")
        require(server.line(), line[::-1], "the reversed line")
        yield


def tls(address):
    # s_server serves one connection at a time.
    return [("lines", tls_lines(address, 1))]


# Programs that are clients of their own, talked to through pipes.


class Piped:
    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, text):
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def line(self):
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError(f"{self.process.args[0]} has ended with {self.process.wait(5)} after {line!r}")
        return line.decode().rstrip("\n")


class Sql(Piped):
    """A database's own client, which prints rows without ornaments; `END` makes it print a line that ends each answer."""

    def start(self, sql):
        self.ask(sql + self.END)

    def finish(self):
        lines = []
        while (line := self.line()) != "end-of-answer":
            lines.append(line)
        return lines

    def run(self, sql):
        self.start(sql)
        return self.finish()


class Psql(Sql):
    END = "\n\\echo end-of-answer"
    BEGIN_SNAPSHOT = "begin isolation level repeatable read;"
    SESSION = "pg_backend_pid(), txid_current()"

    def __init__(self, address):
        opened(address).close()
        kind, _, rest = address.partition(":")
        host, _, port = rest.rpartition(":" if kind == "tcp" else "/.s.PGSQL.")
        super().__init__("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", host, "-p", port, "postgres")


class Mariadb(Sql):
    END = " select 'end-of-answer';"
    BEGIN_SNAPSHOT = "start transaction with consistent snapshot;"
    SESSION = "connection_id()"

    def __init__(self, address):
        opened(address).close()
        kind, _, rest = address.partition(":")
        host, _, port = rest.rpartition(":")
        place = ["--socket", rest] if kind == "unix" else ["--host", host, "--port", port]
        super().__init__("mariadb", "--no-defaults", "--batch", "--skip-column-names", "--unbuffered", "--user", "root", *place, "work")


def sql_transfers(server, number):
    """Each transaction leaves the sum of all accounts as it is, and meets the others at the rows' locks."""
    chance = random.Random(number)
    while True:
        one, other = sorted(chance.sample(range(1, 11), 2))
        amount = chance.randrange(100)
        server.run("begin;"
                   f"select balance from accounts where id in ({one}, {other}) order by id for update;"
                   f"update accounts set balance = balance - {amount} where id = {one};"
                   f"update accounts set balance = balance + {amount} where id = {other};"
                   f"insert into history values ({number}, {one}, {other}, {amount}); commit;")
        require(server.run("select sum(balance) from accounts;"), ["1000"], "the sum of all accounts")
        yield


def sql_snapshot(server):
    """One transaction for the whole test, which sees the database as it was at its beginning."""
    server.run(server.BEGIN_SNAPSHOT)
    question = f"select sum(balance * id), {server.SESSION}, (select count(*) from history) from accounts;"
    expected = server.run(question)
    while True:
        require(server.run(question), expected, "the view of a transaction that stays open")
        time.sleep(0.02)
        yield


def sql_sleep(server, question, answer):
    while True:
        before = time.time()
        require(server.run(question), [answer], question)
        if time.time() - before < 0.5:
            raise AssertionError(f"{question} came back too early")
        yield


def postgres_cursor(address):
    server, count = Psql(address), 0
    while True:
        server.run("begin; declare numbers cursor for select g, md5(g::text) from generate_series(1, 2000) g;")
        for count in range(1, 2001, 100):
            expected = [f"{n}|{hashlib.md5(str(n).encode()).hexdigest()}" for n in range(count, count + 100)]
            require(server.run("fetch 100 from numbers;"), expected, "rows of the cursor")
            yield
        server.run("commit;")


def postgres_waiting(address):
    """A backend that sleeps in the kernel until another lets go of a lock."""
    holder, waiter, count = Psql(address), Psql(address), 0
    waiter.run("create temp table mine (n int);")
    while True:
        holder.run("begin; select pg_advisory_xact_lock(4711);")
        waiter.start(f"begin; select pg_advisory_xact_lock(4711); insert into mine values ({count}); select count(*) from mine; commit;")
        time.sleep(0.1)
        holder.run("commit;")
        count += 1
        require(waiter.finish(), ["", str(count)], "rows of a table of the session's own")
        yield


def sql_sort(server, settings, question):
    """Sorting that spills to temporary files."""
    server.run(settings)
    expected = server.run(question)
    while True:
        require(server.run(question), expected, "an aggregate over a sorted table")
        yield


def postgres_sort(address):
    """By parallel workers, too."""
    settings = ("set work_mem = '64kB'; set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set parallel_tuple_cost = 0;"
                "set min_parallel_table_scan_size = 0;")
    return sql_sort(Psql(address), settings, "select md5(string_agg(text, ',' order by text)), count(distinct text) from words;")


def postgres(address):
    return [(f"transfers-{n}", sql_transfers(Psql(address), n)) for n in range(2)] + \
        [("snapshot", sql_snapshot(Psql(address))), ("cursor", postgres_cursor(address)), ("waiting", postgres_waiting(address)),
         ("sleep", sql_sleep(Psql(address), "select pg_sleep(0.5), 'woken';", "|woken")), ("sort", postgres_sort(address))]


def mariadb_waiting(address):
    """A thread that sleeps until another connection's gives up a lock."""
    holder, waiter, count = Mariadb(address), Mariadb(address), 0
    waiter.run("create temporary table mine (n int);")
    while True:
        require(holder.run("select get_lock('gate', 60);"), ["1"], "the lock")
        waiter.start(f"select get_lock('gate', 60); insert into mine values ({count}); select count(*) from mine; select release_lock('gate');")
        time.sleep(0.1)
        holder.run("select release_lock('gate');")
        count += 1
        require(waiter.finish(), ["1", str(count), "1"], "rows of a table of the session's own")
        yield


def mariadb_sort(address):
    settings = "set sort_buffer_size = 32768; set tmp_memory_table_size = 16384; set max_heap_table_size = 16384; set group_concat_max_len = 10000000;"
    question = "select md5(group_concat(t order by t)), count(distinct t) from (select distinct t from words order by md5(t)) as w;"
    return sql_sort(Mariadb(address), settings, question)


def mariadb(address):
    return [(f"transfers-{n}", sql_transfers(Mariadb(address), n)) for n in range(2)] + \
        [("snapshot", sql_snapshot(Mariadb(address))), ("waiting", mariadb_waiting(address)),
         ("sleep", sql_sleep(Mariadb(address), "select sleep(0.5), 'woken';", "0\twoken")), ("sort", mariadb_sort(address))]


class Ssh(Piped):
    def __init__(self, address, *options_and_command):
        opened(address).close()
        host, _, port = address.removeprefix("tcp:").rpartition(":")
        super().__init__("ssh", "-F", "none", "-i", "user", "-o", "UserKnownHostsFile=known", "-o", "HostKeyAlias=stasis", "-o", "RekeyLimit=1M",
                         "-p", port, "-l", "root", host, *options_and_command)


def ssh_lines(address, pause):
    server, count = Ssh(address, "while read line; do echo $((line * 3)); done"), 0
    while True:
        count += 1
        server.ask(str(count))
        require(server.line(), str(count * 3), "a line of the remote shell")
        time.sleep(pause)
        yield


def ssh_bulk(address):
    """Both directions full: what is in flight is in the buffers of both processes that the server is, and of the kernel."""
    server, chance, count = Ssh(address, "cat"), random.Random(1), 0
    while True:
        lines = [f"{count + n} {chance.randbytes(400).hex()}" for n in range(50)]
        count += 50
        for line in lines:
            server.ask(line)
        for line in lines:
            require(server.line(), line, "a line that comes back")
        yield


def ssh_terminal(address):
    server, count = Ssh(address, "-tt", "stty -echo; tty; exec sh -i"), 0
    while "/dev/pts/" not in server.line():
        pass
    while True:
        count += 1
        server.ask(f"echo answer $(({count} * 7)) $(stty -a | grep -c -- -echo)")
        while "answer" not in (line := server.line()):
            pass
        require(line.rstrip("\r").split("answer ")[1], f"{count * 7} 1", "a line of the remote terminal")
        time.sleep(0.05)
        yield


def ssh(address):
    return [("lines", ssh_lines(address, 0)), ("slow-lines", ssh_lines(address, 0.1)), ("bulk", ssh_bulk(address))]


def ssh_terminals(address):
    return [(f"terminal-{n}", ssh_terminal(address)) for n in range(2)]


# tmux, whose commands are the client


def tmux_do(address, *words):
    done = subprocess.run(["tmux", "-S", address.removeprefix("unix:"), *words], capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        raise AssertionError(f"tmux {words}: {done.stderr}")
    return done.stdout


def tmux_shows(address, pane, is_right, what):
    deadline = time.monotonic() + PATIENCE
    while not is_right(screen := tmux_do(address, "capture-pane", "-p", "-t", f"work.{pane}").split("\n")):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} does not appear: {screen}")
        time.sleep(0.05)
    return screen


def tmux_begin(address):
    """The server listens before it has a session."""
    opened(address).close()
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if len(tmux_do(address, "list-panes", "-t", "work").splitlines()) == 3 and tmux_do(address, "list-clients"):
                return
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def tmux_shell(address):
    tmux_begin(address)
    count = 0
    while True:
        count += 1
        tmux_do(address, "send-keys", "-t", "work.0", f"echo it is $(({count} * 7))", "Enter")
        tmux_shows(address, 0, lambda screen: f"it is {count * 7}" in screen, "the answer of the shell")
        yield


def tmux_editor(address):
    tmux_begin(address)
    tmux_shows(address, 1, lambda screen: "~" in screen, "the editor")
    count, expected = 0, "\n"
    while True:
        count += 1
        tmux_do(address, "send-keys", "-t", "work.1", "G", "o", f"line {count}", "Escape", ":w", "Enter")
        expected += f"line {count}\n"
        deadline = time.monotonic() + PATIENCE
        while open("edited").read() != expected:
            if time.monotonic() > deadline:
                raise AssertionError(f"the editor has written {open('edited').read()[-200:]!r} instead of {expected[-200:]!r}")
            time.sleep(0.05)
        yield


def ticks_on(screen):
    return [int(line.split()[1]) for line in screen if line.startswith("tick ")]


def tmux_ticks(address):
    tmux_begin(address)
    # What the pane has shown while its size still changed may have been cut.
    first = before = max(ticks_on(tmux_shows(address, 2, ticks_on, "a tick")))
    while True:
        screen = tmux_shows(address, 2, lambda screen: max(ticks_on(screen), default=0) > before, f"a tick after {before}")
        ticks = [tick for tick in ticks_on(screen) if tick > first]
        require(ticks, list(range(ticks[0], ticks[0] + len(ticks))), "the ticks")
        before = ticks[-1]
        time.sleep(0.1)
        yield


def tmux(address):
    return [("shell", tmux_shell(address)), ("editor", tmux_editor(address)), ("ticks", tmux_ticks(address))]


PROTOCOLS = dict(redis=redis, memcached=memcached, nginx=nginx, pages=pages, chains=chains, java=java, node=node, tls=tls,
                 postgres=postgres, mariadb=mariadb, ssh=ssh, ssh_terminals=ssh_terminals, tmux=tmux)
