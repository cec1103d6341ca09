"""`countersign probe --revoke` against real servers: whether a revoked certificate gets in anew, with a resumed session
and on a connection that was open before. What is true of each is shown by Python's ssl first."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import pki  # noqa: E402
from ports import free_port  # noqa: E402
from servers import World  # noqa: E402

BIN = os.environ.get("COUNTERSIGN_BIN", "countersign")
RULE = "server-client-cert-unverified/live-revoked"


def nginx(world, port, tickets):
    """`ticket-keys`: in a file, so that old tickets are good after a reload; `none`: no sessions."""
    p = world.pki.path
    session = {
        "ticket-keys": f"ssl_session_tickets on; ssl_session_ticket_key {p('tickets.key')};",
        "none": "ssl_session_tickets off; ssl_session_cache off;",
    }[tickets]
    conf = f"""daemon off; pid revoke.pid; error_log revoke.err; worker_processes 1; events {{ worker_connections 64; }}
    http {{ access_log off; client_body_temp_path rb; proxy_temp_path rp; fastcgi_temp_path rf; uwsgi_temp_path ru;
    scgi_temp_path rs; server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {p('server.pem')};
    ssl_certificate_key {p('server.key')}; ssl_verify_client on; ssl_client_certificate {p('client-ca.pem')};
    ssl_crl {p('live-crl.pem')}; {session} location / {{ return 200 "hello\\n"; }} }} }}"""
    path = f"{world.directory}/revoke.conf"
    with open(path, "w") as f:
        f.write(conf)
    return [world.tools["nginx"], "-p", world.directory, "-e", "revoke.err", "-c", path]


def go(world, port, live):
    record = {"Name": live, "Dir": world.pki.directory, "Protocol": "http", "Auth": "strict", "Cert": "server",
              "ID": pki.ID, "Port": port, "Live": live}
    path = f"{world.directory}/revoke.json"
    with open(path, "w") as f:
        json.dump([record], f)
    return [world.tools["goserver"], path]


def get(world, port, session=None, certificate="right"):
    """One request over TLS 1.2: whether it is answered, whether the session was resumed, and the session."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # countersign:allow hostname-verify-disabled reason=servers on loopback, told apart by their ports
    context.check_hostname = False
    context.load_verify_locations(world.pki.path("server-root.pem"))
    context.load_cert_chain(world.pki.path(f"{certificate}.pem"), world.pki.path(f"{certificate}.key"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if session:
        context = session[0]
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as raw:
            with context.wrap_socket(raw, session=session and session[1]) as tls:
                resumed, kept = tls.session_reused, (context, tls.session)
                tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answered = b" 200 " in tls.recv(4096)
    except OSError:
        return False, False, None
    return answered, resumed, kept


class Revocation(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.world = World()
        cls.world.pki.put("tickets.key", os.urandom(80))

    @classmethod
    def tearDownClass(cls):
        cls.world.stop()

    def empty_list(self):
        self.world.pki.crl(self.world.pki.client_ca)
        shutil.copy(self.world.pki.path("crl.pem"), self.world.pki.path("live-crl.pem"))

    def start(self, command, port):
        with open(f"{self.world.directory}/revoke.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.world.directory)
        self.addCleanup(lambda: (process.terminate(), process.wait(10)))
        end = time.time() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return process
            except OSError:
                if time.time() > end or process.poll() is not None:
                    with open(f"{self.world.directory}/revoke.log") as log:
                        raise AssertionError(log.read()) from None
                time.sleep(0.05)

    def run_against(self, kind, server, shape, reload, resumes, opened):
        self.world.need(kind)
        port = free_port()
        self.empty_list()
        process = self.start(server(self.world, port, shape), port)

        # What is so, without our tool.
        answered, _, session = get(self.world, port)
        self.assertTrue(answered)
        self.world.pki.crl(self.world.pki.client_ca, self.world.pki.pairs["right"])
        shutil.copy(self.world.pki.path("crl.pem"), self.world.pki.path("live-crl.pem"))
        if reload:
            process.send_signal(signal.SIGHUP)
        end = time.time() + 10
        while get(self.world, port)[0]:
            self.assertLess(time.time(), end, "the server goes on taking the certificate")
            time.sleep(0.2)
        answered, resumed, _ = get(self.world, port, session)
        self.assertEqual(answered and resumed, resumes, "what a plain client sees")

        # What our tool says.
        self.empty_list()
        if reload:
            process.send_signal(signal.SIGHUP)
        end = time.time() + 10
        while not get(self.world, port)[0]:
            self.assertLess(time.time(), end)
            time.sleep(0.2)
        p = self.world.pki.path
        publish = f"cp $COUNTERSIGN_PROBE_CRL {p('live-crl.pem')}" + (f" && kill -HUP {process.pid}" if reload else "")
        done = subprocess.run(
            [BIN, "probe", f"127.0.0.1:{port}", "-o", "json", "--protocol", "http", "--server-name", "localhost",
             "--ca-cert", p("client-ca.pem"), "--ca-key", p("client-ca.key"), "--id", pki.ID, "--crl",
             p("live-crl.pem"), "--revoke", "--", "sh", "-c", publish], capture_output=True, text=True, timeout=120)
        self.assertIn(done.returncode, (0, 10), done.stderr)
        report = json.loads(done.stdout)
        cases = {c["id"]: c["outcome"] for c in report["cases"]}
        self.assertIn(cases["revocation/full"], ("refused", "refused-by-application"), report)
        self.assertEqual(cases["revocation/resumed"] == "accepted", resumes, report)
        self.assertEqual(cases["revocation/open"], opened, report)
        found = {f["rule"] for f in report["findings"] if f["rule"].startswith(RULE)}
        wanted = {f"{RULE}-resumed"} if resumes else set()
        wanted |= {f"{RULE}-open"} if opened == "accepted" else set()
        self.assertEqual(found, wanted, report)

    # nginx closes connections that are kept when it reads its configuration anew, whosever they are; it answers a
    # refused certificate with status 400.
    def test_nginx_with_ticket_keys(self):
        self.run_against("nginx", nginx, "ticket-keys", True, True, "unclear")

    def test_nginx_without_sessions(self):
        self.run_against("nginx", nginx, "none", True, False, "unclear")

    def test_go_verify_peer_certificate(self):
        self.run_against("go", go, "certificate", False, True, "accepted")

    def test_go_verify_connection(self):
        self.run_against("go", go, "connection", False, False, "accepted")


if __name__ == "__main__":
    unittest.main(verbosity=2)
