"""What real clients say when TLS fails, and what `countersign why` makes of it. Run by tests/interop/run."""

import datetime
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import unittest
import urllib.request

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ports import free_port

BIN = os.environ["COUNTERSIGN_BIN"]
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def need(tool):
    if shutil.which(tool):
        return
    if os.environ.get("CI") == "true":
        raise AssertionError(f"{tool} is missing")
    raise unittest.SkipTest(f"SKIPPED: {tool} is missing")


def make(directory, name, issuer=None, names=("localhost",), start=NOW - DAY, end=NOW + DAY):
    """A CA without an issuer, a leaf with one; returns what the next one needs."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0] if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(issuer is None, None), True)
    )
    if issuer:
        sans = [x509.DNSName(n) for n in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), False)
    cert = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    with open(f"{directory}/{name}.pem", "wb") as f:
        f.write(cert.public_bytes(pem))
    with open(f"{directory}/{name}.key", "wb") as f:
        f.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return subject, key


class Server:
    """Answers TLS, or plaintext without a certificate, until it is closed."""

    def __init__(self, directory, cert=None, client_ca=None):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.context = None
        if cert:
            # countersign:allow server-client-auth-absent reason=a test double that is told what to demand
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(f"{directory}/{cert}.pem", f"{directory}/{cert}.key")
            if client_ca:
                self.context.load_verify_locations(f"{directory}/{client_ca}.pem")
                self.context.verify_mode = ssl.CERT_REQUIRED
            else:
                # countersign:allow server-client-auth-absent reason=the clients under test are to verify the server
                self.context.verify_mode = ssl.CERT_NONE
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                stream, _ = self.listener.accept()
            except OSError:
                return
            try:
                stream.settimeout(5)
                if self.context:
                    stream = self.context.wrap_socket(stream, server_side=True, do_handshake_on_connect=False)
                    stream.do_handshake()
                stream.recv(4096)
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            except OSError:
                # A close with unread data is a reset, which can overtake the alert.
                self.linger(stream)
            finally:
                stream.close()

    @staticmethod
    def linger(stream):
        try:
            raw = socket.socket(fileno=os.dup(stream.fileno()))
            with raw:
                raw.settimeout(1)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(4096):
                    pass
        except OSError:
            pass

    def close(self):
        self.listener.close()


class Errors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp(prefix="cs-errors-")
        ca = make(cls.dir, "ca")
        make(cls.dir, "other")
        make(cls.dir, "good", ca)
        make(cls.dir, "expired", ca, start=NOW - 3 * DAY, end=NOW - DAY)
        make(cls.dir, "early", ca, start=NOW + DAY, end=NOW + 3 * DAY)
        make(cls.dir, "named", ca, names=("elsewhere.test",))

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.dir, ignore_errors=True)

    def curl(self, port, ca):
        need("curl")
        out = subprocess.run(
            ["curl", "-sS", "--max-time", "10", "--cacert", f"{self.dir}/{ca}.pem", f"https://localhost:{port}/"],
            capture_output=True, text=True)
        return out.stderr

    def python(self, port, ca):
        context = ssl.create_default_context(cafile=f"{self.dir}/{ca}.pem")
        try:
            urllib.request.urlopen(f"https://localhost:{port}/", timeout=10, context=context).read()
        except OSError as e:
            return f"{e!r} {getattr(e, 'reason', '')}"
        return ""

    def openssl(self, port, ca):
        need("openssl")
        out = subprocess.run(
            ["openssl", "s_client", "-connect", f"localhost:{port}", "-CAfile", f"{self.dir}/{ca}.pem",
             "-verify_return_error", "-verify_hostname", "localhost"],
            input="GET / HTTP/1.0\r\n\r\n", capture_output=True, text=True, timeout=20)
        return out.stderr + out.stdout

    def why(self, text):
        out = subprocess.run([BIN, "why", "-", "-o", "json"], input=text, capture_output=True, text=True)
        self.assertEqual(out.returncode, 0, f"{text!r}: {out.stderr}")
        return [c["code"] for c in json.loads(out.stdout)["causes"]]

    def check(self, wanted, ca="ca", clients=("curl", "python", "openssl"), **server):
        running = Server(self.dir, **server)
        try:
            for client in clients:
                text = getattr(self, client)(running.port, ca)
                codes = self.why(text)
                self.assertTrue(set(codes) & set(wanted), f"{client}: {codes} for {text}")
        finally:
            running.close()

    def test_unknown_authority(self):
        # OpenSSL cannot tell an unknown root from a missing intermediate.
        self.check({"CS1003", "CS1004"}, ca="other", cert="good")

    def test_expired(self):
        self.check({"CS1001"}, cert="expired")

    def test_not_yet_valid(self):
        self.check({"CS1002"}, cert="early")

    def test_another_name(self):
        self.check({"CS1020"}, cert="named")

    def test_no_client_certificate(self):
        # Whether the alert arrives before the close is a race that the client does not decide.
        self.check({"CS2001", "CS2006"}, cert="good", client_ca="ca", clients=("curl", "python"))

    def test_plaintext_port(self):
        self.check({"CS2007"}, clients=("curl", "python", "openssl"))

    def test_nobody_listens(self):
        port = free_port()
        for client in ("python", "openssl"):
            self.assertIn("CS2201", self.why(getattr(self, client)(port, "ca")))


if __name__ == "__main__":
    unittest.main(verbosity=2)
