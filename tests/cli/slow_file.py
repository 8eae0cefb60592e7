"""A file whose reads take as long as one likes: a file system in user space with nothing else in it (FUSE,
linux/fuse.h). Reads of direct I/O are under way until `answer` is called."""
import ctypes
import os
import struct
import threading

LOOKUP, FORGET, GETATTR, OPEN, READ, INIT, INTERRUPT, FORGET_SEVERAL = 1, 2, 3, 14, 15, 26, 36, 42
WITHOUT_CONTENT = {18: b"", 25: b""}  # RELEASE, FLUSH
ASYNC_DIRECT_IO, OPEN_DIRECTLY = 1 << 15, 1
ROOT, FILE, SIZE = 1, 2, 8192
ENOENT, ENOSYS = 2, 38

libc = ctypes.CDLL(None, use_errno=True)


class SlowFile:
    """Mounted on a directory that is there; the file's name is `file`."""

    def __init__(self, directory):
        self.path = os.path.join(directory, "file")
        self.device = os.open("/dev/fuse", os.O_RDWR)
        self.held, self.answered, self.lock = [], False, threading.Lock()
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"slow", directory.encode(), b"fuse.slow", 0, options) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        threading.Thread(target=self.serve, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        """A process with a request that is never answered could not even be killed."""
        self.answer()

    def answer(self):
        """All reads, those to come included."""
        with self.lock:
            self.answered = True
            for request in self.held:
                self.give(*request)
            self.held = []

    def serve(self):
        try:
            while True:
                request = os.read(self.device, 1 << 20)
                length, operation, unique, node = struct.unpack_from("<IIQQ", request)
                self.handle(operation, unique, node, request[40:length])
        except OSError:
            pass  # it has been unmounted

    def handle(self, operation, unique, node, body):
        if operation in (FORGET, FORGET_SEVERAL, INTERRUPT):
            return
        if operation == INIT:
            self.reply(unique, struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, ASYNC_DIRECT_IO, 16, 12, 1 << 16, 1, 16, 0, 0))
        elif operation == LOOKUP and body.rstrip(b"\0") == b"file":
            self.reply(unique, struct.pack("<QQQQII", FILE, 0, 1000, 1000, 0, 0) + self.attributes(FILE))
        elif operation == LOOKUP:
            self.reply(unique, error=ENOENT)
        elif operation == GETATTR:
            self.reply(unique, struct.pack("<QII", 1000, 0, 0) + self.attributes(node))
        elif operation == OPEN:
            self.reply(unique, struct.pack("<QII", 0, OPEN_DIRECTLY, 0))
        elif operation == READ:
            _, offset, size, _, _, flags = struct.unpack_from("<QQIIQI", body)
            self.read(unique, offset, size, flags & os.O_DIRECT)
        elif operation in WITHOUT_CONTENT:
            self.reply(unique, WITHOUT_CONTENT[operation])
        else:
            self.reply(unique, error=ENOSYS)

    def read(self, unique, offset, size, is_direct):
        """Others, a dump among them, look at the file in the meantime."""
        with self.lock:
            if self.answered or not is_direct:
                self.give(unique, offset, size)
            else:
                self.held.append((unique, offset, size))

    def give(self, unique, offset, size):
        self.reply(unique, bytes(max(0, min(size, SIZE - offset))))

    @staticmethod
    def attributes(node):
        mode = 0o40755 if node == ROOT else 0o100644
        return struct.pack("<QQQQQQ", node, SIZE, SIZE // 512, 0, 0, 0) + struct.pack("<10I", 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def reply(self, unique, content=b"", error=0):
        os.write(self.device, struct.pack("<IiQ", 16 + len(content), -error, unique) + content)
