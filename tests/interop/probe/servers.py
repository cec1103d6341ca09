"""Starts the servers of `setups.py`: one process for all set-ups of a kind where that is possible.

As a command (`servers.py [KIND…]`): shows without our own tool that what `setups.py` says of each is true.
"""

import base64
import http.server
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse

from cryptography import x509

import install
import pki
import proxies
from ports import free_port
from setups import all_setups

HERE = os.path.dirname(os.path.abspath(__file__))
NEEDS = {"go": ["goserver"], "apache": ["apache2"], "postgres": ["postgres", "initdb"], "mariadb": ["mariadbd"]}


def judge(mode, headers):
    """The application behind a proxy: `bound` looks at the certificate that the proxy tells it of, `believe` at
    whatever header there is."""
    if mode == "believe":
        # Without a certificate in a private header it is the proxy's own header that must say so.
        told = [headers.get(name, "") for name in proxies.HEADERS]
        if any("sa/web" in t or "CN=web" in t or t == "web" for t in told):
            return 200
    # countersign:allow header-identity reason=the proxies in front overwrite it; some set-ups' flaw is the other ones
    peer = headers.get("X-Peer-Cert", "")
    if not peer:
        return 403 if mode in ("bound", "believe") else 200
    if mode != "hello":
        text = urllib.parse.unquote(peer) if "%" in peer else peer
        body = text.replace("-----BEGIN CERTIFICATE-----", "").replace("-----END CERTIFICATE-----", "")
        cert = x509.load_der_x509_certificate(base64.b64decode("".join(body.split())))
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_ca = cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return 200 if uris == [pki.ID] and not is_ca else 403
    return 200


class App(http.server.BaseHTTPRequestHandler):
    mode = "hello"

    def answer(self):
        status = judge(self.mode, self.headers)
        lengths = self.headers.get_all("Content-Length", []) + self.headers.get_all("Transfer-Encoding", [])
        if len(lengths) > 1:
            status = 400
        elif "Content-Length" in self.headers:
            self.rfile.read(min(int(self.headers["Content-Length"]), 65536))
        body = b"hello\n"
        if self.mode == "echo":
            body = json.dumps({n: self.headers[n] for n in proxies.HEADERS if n in self.headers}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_HEAD = do_PUT = answer

    def log_message(self, *_):
        pass


class Apps(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        pass


class World:
    """The certificates, the applications and, started when first asked for, the servers."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="cs-probe-")
        # Servers that drop their rights write here as someone else; the keys are readable by their owner only.
        os.chmod(self.directory, 0o777)
        os.mkdir(f"{self.directory}/pki")
        self.pki = pki.Pki(f"{self.directory}/pki")
        self.id = pki.ID
        self.tools = install.servers()
        self.setups = all_setups()
        self.running = {}
        self.apps, self.listeners = {}, []
        for mode in ("hello", "echo", "believe", "bound"):
            app = Apps(("127.0.0.1", 0), type("A", (App,), {"mode": mode}))
            threading.Thread(target=app.serve_forever, args=(0.2,), daemon=True).start()
            self.apps[mode] = app.server_address[1]
            self.listeners.append(app)

    def need(self, kind):
        missing = [tool for tool in NEEDS.get(kind, [kind]) if not self.tools.get(tool)]
        if not missing:
            return
        if os.environ.get("CI") == "true":
            raise AssertionError(f"{missing} is missing")
        raise unittest.SkipTest(f"SKIPPED: {missing} is missing")

    def start(self, kind):
        """The set-ups of this kind, running."""
        self.launch(kind)
        self.await_ports(kind)
        return self.setups[kind]

    def launch(self, kind):
        """From the main thread only: a child that asks for a signal when its parent ends means the thread."""
        self.need(kind)
        if kind in self.running:
            return
        # There from the beginning, so that what has started is stopped even if the rest does not start.
        self.running[kind] = []
        setups = self.setups[kind]
        for s in setups:
            s.port = free_port()
            if s.plain in ("neighbour", "redirect"):
                s.also = free_port()
        if kind in ("node", "python", "go"):
            path = proxies.save(self, f"{kind}.json", json.dumps([s.record(self.pki.directory) for s in setups]))
            commands = [{"node": [self.tools["node"], f"{HERE}/apps/server.js", path],
                         "python": [self.tools["python"], f"{HERE}/apps/pyserver.py", path],
                         "go": [self.tools.get("goserver"), path]}[kind]]
        elif kind == "java":
            rows = ["\t".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}"
                              for k, v in s.record(self.pki.directory).items()) for s in setups]
            path = proxies.save(self, "java.txt", "\n".join(rows) + "\n")
            commands = [[self.tools["java"], "-Xmx256m", f"{HERE}/apps/Server.java", path]]
        else:
            made = getattr(proxies, kind)(setups, self)
            commands = made if isinstance(made[0], list) else [made]
        for number, command in enumerate(commands):
            log = f"{self.directory}/{kind}-{number}.log"
            with open(log, "wb") as out:
                process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                           env=install.environment(), cwd=self.directory)
            self.running[kind].append((process, log))

    def await_ports(self, kind):
        end = time.time() + 60
        for port in [port for s in self.setups[kind] for port in (s.port, s.also) if port]:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if time.time() > end or any(p.poll() is not None for p, _ in self.running[kind]):
                        raise AssertionError(f"{kind} does not start:\n{self.logs(kind)}") from None
                    time.sleep(0.05)

    def alive(self, kind):
        """A server that died would look like one that refuses."""
        for process, log in self.running[kind]:
            if process.poll() is not None:
                raise AssertionError(f"{kind} ended with {process.returncode}:\n{self.logs(kind)}")

    def logs(self, kind):
        files = [log for _, log in self.running[kind]] + [f"{self.directory}/{kind}.err"]
        return "\n".join(open(f, errors="replace").read()[-2000:] for f in files if os.path.exists(f))

    def stop(self):
        processes = [p for started in self.running.values() for p, _ in started]
        for process in processes:
            process.terminate()
        end = time.time() + 10
        for process in processes:
            try:
                process.wait(max(0.1, end - time.time()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for app in self.listeners:
            app.shutdown()
            app.server_close()
        shutil.rmtree(self.directory, ignore_errors=True)


if __name__ == "__main__":
    import sys

    import client

    sys.exit(client.main(World(), sys.argv[1:]))
