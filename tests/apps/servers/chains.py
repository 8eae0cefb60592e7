"""Answers lines of seed and rounds: an event loop, threads for the short ones, processes for the long ones."""
import asyncio
import concurrent.futures
import hashlib
import multiprocessing
import sys


def chain(seed, rounds):
    digest = seed
    for _ in range(rounds):
        digest = hashlib.sha256(digest).digest()
    return digest.hex().encode()


async def main(target):
    loop = asyncio.get_running_loop()
    threads = concurrent.futures.ThreadPoolExecutor(2)
    processes = concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork"))

    async def serve(reader, writer):
        while line := await reader.readline():
            seed, rounds = line.split()
            pool = threads if int(rounds) < 1000 else processes
            writer.write(await loop.run_in_executor(pool, chain, seed, int(rounds)) + b"\n")
            await writer.drain()
        writer.close()

    kind, _, rest = target.partition(":")
    if kind == "unix":
        server = await asyncio.start_unix_server(serve, rest)
    else:
        server = await asyncio.start_server(serve, *rest.rsplit(":", 1))
    ticks = 0
    async with server:
        while True:
            ticks += 1
            await asyncio.sleep(0.01)


asyncio.run(main(sys.argv[1]))
