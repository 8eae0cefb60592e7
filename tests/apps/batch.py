"""Programs that work and end: each runs once undisturbed, and once dumped in mid-work, now left running, now killed and restored; the
results must be equal."""
import difflib
import os
import time

import cycle

# A job is a shell script. It runs in an empty directory, prepares under `prepare`, works under `work`, and what `work` prints, with the
# files named in `results`, is the result. `shows` is a part of it that proves that the work was done; `options` are what stasis needs for it.
JOBS = {
    "pipeline": dict(
        prepare="", results=[],
        work="for i in $(seq 1 16); do seq 1 400000 | grep -v 7 | tr 0-9 a-j | sort | uniq -c | tail -3; done"),
    "tar-gzip": dict(
        prepare="", results=[],
        work="tar --sort=name -cf - /usr/include/linux /usr/include/c++ 2>/dev/null | gzip -9 | tee >(wc -c >size) | sha256sum; cat size"),
    "perl": dict(
        prepare="", results=["out"],
        work="""perl -e 'open O, ">out"; my %h; for my $i (1..3000000) { $h{($i * 7919) % 10007} += $i; }
                for (sort { $a <=> $b } keys %h) { print O "$_ $h{$_}\\n" } close O; print "done\\n"'"""),
    "awk": dict(
        prepare="", results=[],
        work="seq 1 9000000 | awk '{ s += $1 * ($1 % 7); c[$1 % 1013]++ } END { for (i = 0; i < 1013; i++) t += c[i] * i; print s, t }'"),
    "sort": dict(
        prepare="seq 1 2500000 | awk '{ print ($1 * 7919) % 2500009, $1 }' >input", results=[],
        # A small buffer makes sort merge through temporary files, some of them unlinked while open.
        work="sort -S 2M -T . --parallel=2 -n input | tee sorted | sha256sum; wc -l <sorted"),
    "make": dict(
        prepare=r"""for i in $(seq 1 12); do
                      { echo "#include <stdio.h>"; for k in $(seq 1 150); do echo "int f${i}_$k(int x) { return x * $k + $i; }"; done; } >part$i.c
                    done
                    { echo 'int main(void) { return 0; }'; } >main.c
                    printf 'OBJ := $(patsubst %%.c,%%.o,$(sort $(wildcard *.c)))\nall: program\nprogram: $(OBJ)\n\t@$(CC) -o $@ $(OBJ)\n%%.o: %%.c\n\t@$(CC) -O2 -c -o $@ $<\n' >Makefile""",
        work="make -j2 && nm program | grep -c ' T f' && sha256sum part*.o", results=[]),
    "python": dict(
        prepare="", results=[],
        work="""python3 - <<'END'
import hashlib, os, queue, select, subprocess, threading
results = queue.Queue()
def chain(seed):
    digest = str(seed).encode()
    for _ in range(120_000):
        digest = hashlib.sha256(digest).digest()
    results.put(digest.hex())
# Polls with two descriptors and a time limit, while children end all the time.
bell, ring = os.pipe()
silent, _ = os.pipe()
heard = []
def listen():
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    poll.register(silent, select.POLLIN)
    while not heard or heard[-1] != b"z":
        poll.poll(60_000)
        heard.append(os.read(bell, 1))
def bear():
    for n in range(80):
        subprocess.run(["true"])
        if n % 10 == 0: os.write(ring, b"a")
threads = [threading.Thread(target=chain, args=(n,)) for n in range(3)] + [threading.Thread(target=bear) for _ in range(2)]
listener = threading.Thread(target=listen)
for t in [*threads, listener]: t.start()
child = subprocess.Popen(["sh", "-c", "sleep 1.5; read line; echo got $line; exit 7"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
for t in threads: t.join()
os.write(ring, b"z")
listener.join()
print(sorted(results.get() for _ in range(3)), len(heard))
print(child.communicate("through a pipe\\n")[0].strip(), child.returncode)
END"""),
    # Two writers, who wait for each other's locks. Every row is counted in the same transaction, so that what is lost or written twice is seen.
    "sqlite": dict(
        needs=["sqlite3"], results=[], options=["--file-locks"],
        prepare="""echo 'create table numbers (n integer primary key, square int); create table total (n int, sum int); insert into total values (0, 0);' |
                   sqlite3 db
                   for half in 0 1; do
                       echo '.timeout 60000'; echo 'pragma synchronous = off; pragma cache_size = 5;'
                       seq $((half + 1)) 2 6000 | awk '{ print "begin immediate; insert into numbers values (" $1 ", " $1 * $1 ");";
                                                         print "update total set n = n + 1, sum = sum + " $1 * $1 "; commit;" }'
                   done | awk '/timeout/ { half++ } { print >"statements" half }'""",
        work="""for mode in delete wal; do
                    cp db $mode.db; sqlite3 $mode.db "pragma journal_mode = $mode"
                    for half in 1 2; do sqlite3 $mode.db <statements$half & done; wait
                    sqlite3 $mode.db 'pragma integrity_check; select count(*), sum(square) from numbers; select * from total'
                done"""),
    "zstd": dict(
        needs=["zstd", "xz"], prepare="seq 1 500000 | awk '{ print ($1 * 7919) % 500009, $1 }' >input", results=[],
        work="zstd -q -T2 -12 -B1M <input | tee >(sha256sum) | zstd -qd | sha256sum; xz -T2 -1 --block-size=1MiB <input | xz -d -T2 | sha256sum"),
    "git": dict(
        needs=["git"], results=[],
        prepare="""git init -q repository && cd repository && git config user.name nobody && git config user.email nobody@example.org
                   for n in $(seq 1 20); do
                       for file in a b c d e f g; do seq $n $((n * 7 % 11)) 3000 | sed "s/$/ $file/" >$file-$((n % 7)); done
                       git add . && GIT_AUTHOR_DATE=@1700000$((n + 100)) GIT_COMMITTER_DATE=@1700000$((n + 100)) git commit -q -m "number $n"
                   done""",
        work="""for n in 1 2; do
                    git clone -q --no-local repository clone && cd clone && git -c pack.threads=2 gc -q --aggressive --prune=now && git fsck --no-progress &&
                        git log --format='%H %s' | sha256sum && git ls-files -s | sha256sum; cd ..; rm -rf clone
                done"""),
    "ruby": dict(
        needs=["ruby"], prepare="", results=[],
        work="""ruby -e 'queue = SizedQueue.new(10)
                         feeder = Thread.new { 10_000.times { |n| queue << n; sleep 0.0001 if n % 40 == 0 }; queue << nil }
                         squares = IO.popen(["ruby", "-e", "$stdout.sync = true; while line = gets; puts line.to_i ** 3; end"], "r+")
                         total = 0
                         while n = queue.pop
                           squares.puts n
                           total += squares.gets.to_i
                         end
                         squares.close_write
                         puts total, [squares.read, feeder.join.status].inspect'"""),
    "php": dict(
        needs=["php"], prepare="", results=[],
        work="""php -r '$s = []; for ($i = 0; $i < 6000000; $i++) { $k = ($i * 7919) % 10007; $s[$k] = ($s[$k] ?? 0) + $i; } ksort($s); echo md5(serialize($s)), PHP_EOL;'"""),
    "lua": dict(
        needs=["lua5.4"], prepare="", results=[],
        work="""lua5.4 -e 'local t, co = {}, coroutine.wrap(function() for i = 1, 3000000 do coroutine.yield(i * 7919 % 10007) end end)
                           for i = 1, 3000000 do local k = co(); t[k] = (t[k] or 0) + i end
                           local sum = 0; for k, v in pairs(t) do sum = sum + k * (v % 1013) end; print(sum)'"""),
    # Client and server of one connection, with a process of the server's for privileges and one for the session.
    "ssh": dict(
        needs=["sshd", "ssh", "ssh-keygen"], results=[], shows="from the session\n7\n",
        prepare="""mkdir -p /run/sshd
                   for name in host user; do ssh-keygen -q -t ed25519 -N '' -f $name; done
                   echo "stasis $(cut -d' ' -f1,2 host.pub)" >known; cp user.pub authorized; seq 1 60000 >data""",
        work=r"""cat data | ssh -F none -i user -o UserKnownHostsFile=known -o HostKeyAlias=stasis -o RekeyLimit=1M \
                    -o ProxyCommand='/usr/sbin/sshd -i -e -f /dev/null -h '$PWD'/host -o AuthorizedKeysFile='$PWD'/authorized -o StrictModes=no 2>sshd.log' \
                    root@stasis 'while read line; do echo $((line * 3)); done | sha256sum; echo from the session; exit 7'; echo $?"""),
    # An agent that listens on a path, a client that stays connected to it, workers behind pipes and socket pairs.
    "sockets": dict(
        prepare="", results=[],
        work="""python3 - <<'END'
import hashlib, multiprocessing, os, socket
def agent(ready):
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind("agent.sock")
    server.listen(4)
    ready.send("ready")
    connection, _ = server.accept()
    with connection.makefile("rwb") as stream:
        for line in stream:
            stream.write(hashlib.sha256(line).hexdigest().encode() + b"\\n")
            stream.flush()
def worker(seed, pipe):
    digest = str(seed).encode()
    for _ in range(200):
        for _ in range(2500):
            digest = hashlib.sha256(digest).digest()
        pipe.send(digest)
    pipe.close()
context = multiprocessing.get_context("fork")
ours, theirs = context.Pipe()
keeper = context.Process(target=agent, args=(theirs,))
keeper.start()
ours.recv()
client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
client.connect("agent.sock")
stream = client.makefile("rwb")
pipes, workers = [], []
for seed in range(3):
    receiver, sender = context.Pipe(duplex=seed == 0)
    workers.append(context.Process(target=worker, args=(seed, sender)))
    workers[-1].start()
    sender.close()
    pipes.append(receiver)
total = hashlib.sha256()
for _ in range(200):
    for pipe in pipes:
        stream.write(pipe.recv().hex().encode() + b"\\n")
        stream.flush()
        total.update(stream.readline())
stream.close()
client.close()
for process in [*workers, keeper]:
    process.join()
print(total.hexdigest(), [process.exitcode for process in [*workers, keeper]])
END"""),
}


class TooLate(Exception):
    """The job was done before its dump was due: the machine has become quicker since the undisturbed run."""


def result_of(directory, names):
    text = open(f"{directory}/stdout").read()
    return text + "".join(open(f"{directory}/{name}").read() for name in names)


def undisturbed(job, base):
    plain = cycle.prepared(base, "plain", job["prepare"])
    start = time.monotonic()
    with open(f"{plain}/stdout", "w") as stdout:
        os.waitpid(cycle.start(job["work"], plain, stdout), 0)
    return result_of(plain, job["results"]), time.monotonic() - start


def cycled(options, job, base, pause):
    """What the job gives when it is dumped again and again, with so many seconds of work between."""
    directory = cycle.prepared(base, "cycled", job["prepare"])
    with open(f"{directory}/stdout", "w") as stdout:
        root = cycle.start(job["work"], directory, stdout)
    try:
        for number in range(options.times):
            for kind, dumped in ("running", cycle.dump_running), ("ended", cycle.dump_and_restore):
                time.sleep(pause)
                if cycle.is_dead(root):
                    raise TooLate()
                try:
                    dumped(options.stasis, root, f"{base}/{kind}-{number}", job.get("options", ()))
                except cycle.Failed as reason:
                    if "it has ended and waits to be reaped" in str(reason):  # since we looked
                        raise TooLate() from reason
                    raise
        deadline = time.monotonic() + 60 + 20 * pause
        while not cycle.is_dead(root):
            if time.monotonic() > deadline:
                raise cycle.Failed(f"the restored job does not end: {cycle.tree(root)}")
            time.sleep(0.02)
    finally:
        cycle.kill_tree(root)
    return result_of(directory, job["results"])


def run(options, base):
    job = JOBS[options.job]
    expected, seconds = undisturbed(job, base)
    if job.get("shows", "") not in expected:
        raise cycle.Failed(f"the job does not work, even undisturbed:\n{expected[-2000:]}")
    pause = seconds / (2 * options.times + 1)
    for attempt in range(8):  # what else runs on the machine can make the first run ten times as long
        folder = f"{base}/{attempt}"
        os.mkdir(folder)
        try:
            got = cycled(options, job, folder, pause)
            break
        except TooLate:
            print(f"the job ended within {pause:.2f} s of work before a dump: again, with half of that")
            pause /= 2
    else:
        raise cycle.Failed("the job ends before it can be dumped")
    if got != expected:
        difference = difflib.unified_diff(expected.splitlines(), got.splitlines(), "expected", "got", n=1, lineterm="")
        raise cycle.Failed("results differ:\n" + "\n".join(difference)[:2000])
    return f"{seconds:.1f} s of work, {options.times} times dumped and left running, dumped and restored, equal result"
