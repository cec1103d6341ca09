"""Python's ssl as a client: client.py MODE CA NAME; the address is in COUNTERSIGN_PROBE_ADDR. Exit 0 if the server was
believed and has answered."""

import os
import socket
import ssl
import sys

mode, ca, name = sys.argv[1:]
host, port = os.environ["COUNTERSIGN_PROBE_ADDR"].rsplit(":", 1)
context = ssl.create_default_context(cafile=ca)
if mode in ("no-hostname", "cert-none", "cert-none-waits", "name-later"):
    context.check_hostname = False
if mode in ("cert-none", "cert-none-waits"):
    # countersign:allow client-verify-disabled reason=the set-up whose flaw this is
    context.verify_mode = ssl.CERT_NONE
if mode == "strict":
    context.verify_flags |= ssl.VERIFY_X509_STRICT
with socket.create_connection((host, int(port)), 10) as raw, context.wrap_socket(raw, server_hostname=name) as stream:
    if mode in ("waits", "cert-none-waits"):
        # Where the server is to speak first, a client that believes is silent.
        stream.settimeout(1.3)
        try:
            stream.recv(1)
        except TimeoutError:
            pass
        sys.exit(0)
    if mode == "name-later" and ("DNS", name) not in stream.getpeercert().get("subjectAltName", ()):
        sys.exit(1)
    stream.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
    sys.exit(0 if stream.recv(65536).startswith(b"HTTP/1.1 200") else 1)
