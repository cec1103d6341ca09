"""Ports for servers that have to be told theirs. They are below what the kernel hands out by itself (32768 and up), so that no
other connection takes one between this look and its use; none is given twice by one process, and processes begin in
different places."""

import itertools
import os
import socket

FIRST, COUNT = 10_000, 10_000
_next = itertools.count(os.getpid() * 997)


def free_port():
    for n in itertools.islice(_next, COUNT):
        port = FIRST + n % COUNT
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(f"no port from {FIRST} to {FIRST + COUNT} is free")
