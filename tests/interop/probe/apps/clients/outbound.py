"""`countersign proxy outbound` as a client: outbound.py BINARY FOLDER PEER-ID: starts it for one request, and ends it.
Exit 0 if the server was believed and has answered."""

import os
import socket
import subprocess
import sys
import time

from ports import free_port

binary, folder, peer = sys.argv[1:]
port = free_port()
proxy = subprocess.Popen(
    [binary, "proxy", "outbound", "--listen", f"127.0.0.1:{port}", "--upstream", os.environ["COUNTERSIGN_PROBE_ADDR"],
     "--peer-id", peer, "--cert", f"{folder}/client.pem", "--key", f"{folder}/client.key",
     "--bundle", f"{folder}/ca.pem"],
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
answer = b""
try:
    end = time.time() + 3
    # It listens before it has read its certificate, and says so.
    while (not answer or b"no_identity_yet" in answer) and time.time() < end and proxy.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as stream:
                stream.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = stream.recv(65536)
        except ConnectionRefusedError:
            pass
        time.sleep(0.02)
finally:
    proxy.kill()
    proxy.wait()
sys.exit(0 if answer.startswith(b"HTTP/1.1 200") else 1)
