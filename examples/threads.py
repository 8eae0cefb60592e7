"""Four threads hash their way through chains of digests and pass results through a queue: a job whose one result
depends on every step of every thread, so that a restore that lost anything would show."""
import hashlib
import queue
import threading

THREADS = 4
STEPS = 1_200_000

results = queue.Queue()


def chain(seed):
    digest = str(seed).encode()
    for _ in range(STEPS):
        digest = hashlib.sha256(digest).digest()
    results.put((seed, digest.hex()))


threads = [threading.Thread(target=chain, args=(seed,), name=f"chain-{seed}") for seed in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for seed, digest in sorted(results.get() for _ in threads):
    print(f"chain {seed}: {digest}")
