"""What every test of a real program does: start it, dump and end it, restore it, end it for good."""
import os
import signal
import subprocess
import time


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


def start(script, directory, stdout):
    # Under `make test` the make of a job would take itself for a sub-make, and print the directories it enters.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.Popen(["bash", "-c", script], cwd=directory, stdin=subprocess.DEVNULL, stdout=stdout,
                            stderr=subprocess.STDOUT, env=environment, start_new_session=True).pid


def prepared(base, name, script):
    directory = f"{base}/{name}"
    os.mkdir(directory)
    if script:
        done = subprocess.run(["bash", "-e", "-c", script], cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"the preparation ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return directory


def is_dead(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def tree(root):
    """The root and all its descendants that live."""
    found = [] if is_dead(root) else [root]
    for parent in found:
        try:
            for thread in os.listdir(f"/proc/{parent}/task"):
                children = open(f"/proc/{parent}/task/{thread}/children").read().split()
                found += [int(child) for child in children if not is_dead(child)]
        except OSError:
            pass
    return found


def reap():
    """Restored trees are orphans: they come to us, the subreaper."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        pass


def kill_tree(root, but=None):
    while members := [pid for pid in tree(root) if pid != but]:
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.01)
    reap()


def call(stasis, arguments, images):
    done = subprocess.run([stasis, *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        log = f"{images}/{arguments[0]}.log"
        text = open(log, errors="replace").read()[-3000:] if os.path.exists(log) else ""
        raise Failed(f"stasis {' '.join(arguments)} ended with {done.returncode}\n{done.stderr}{text}")


def dump(stasis, root, images, options=()):
    os.mkdir(images)
    call(stasis, ["dump", "-t", str(root), "-D", images, "-o", "dump.log", "-v4", *options], images)


def dump_running(stasis, root, images, options=()):
    dump(stasis, root, images, ["--leave-running", *options])


def dump_and_restore(stasis, root, images, options=()):
    members = tree(root)
    dump(stasis, root, images, options)
    deadline = time.monotonic() + 10
    while survivors := [pid for pid in {*members, root} if os.path.exists(f"/proc/{pid}")]:
        if time.monotonic() > deadline:
            raise Failed(f"tasks survived the dump: {survivors}")
        reap()
        time.sleep(0.002)
    call(stasis, ["restore", "-D", images, "-d", "-o", "restore.log", "-v4", *options], images)
