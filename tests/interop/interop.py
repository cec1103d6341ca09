"""Real clients against the real binary. Run by tests/interop/run."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ports import free_port

BIN = os.environ["COUNTERSIGN_BIN"]
API, WEB, ENVOY, GO = (f"spiffe://corp.test/{n}" for n in ("api", "web", "envoy", "go"))


def need(tool, path):
    """A missing tool is loud, and in CI a failure."""
    if path and (os.path.exists(path) or shutil.which(path)):
        return
    if os.environ.get("CI") == "true":
        raise AssertionError(f"{tool} is missing")
    raise unittest.SkipTest(f"SKIPPED: {tool} is missing")


def eventually(what, f, seconds=30):
    end, last = time.time() + seconds, None
    while time.time() < end:
        try:
            result = f()
            if result:
                return result
        except Exception as e:  # the last one is told if it never works
            last = e
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen in {seconds} s: {last!r}")


def get(url, timeout=5):
    try:
        with urllib.request.urlopen(url, timeout=timeout) as r:
            return r.status, r.read().decode(), r.headers
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode(), e.headers


class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        # countersign:allow header-identity reason=shows the header to the test, decides nothing
        body = self.headers.get("X-Forwarded-Client-Cert", "none").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Mesh(unittest.TestCase):
    """One trust domain, one agent, short certificates; every test adds its own proxies."""

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp(prefix="cs-")
        cls.env = dict(os.environ, COUNTERSIGN_DATA_DIR=cls.dir)
        cls.env.pop("SPIFFE_ENDPOINT_SOCKET", None)
        cls.children = []
        cls.run_ok("init", "--trust-domain", "corp.test")
        cls.up = cls.start("up", "--listen", "127.0.0.1:0")
        cls.socket = cls.up["spiffe_endpoint_socket"]
        cls.env["SPIFFE_ENDPOINT_SOCKET"] = cls.socket
        os.environ["SPIFFE_ENDPOINT_SOCKET"] = cls.socket
        for path in ("/web", "/api", "/envoy", "/go"):
            cls.run_ok("entry", "create", "--spiffe-id", path, "--selector",
                       f"unix:uid:{os.getuid()}", "--x509-svid-ttl", "12s")
        eventually("SVIDs", lambda: json.loads(
            cls.run_ok("status", "-o", "json"))["agent"]["svids"] == 4)
        cls.app = ThreadingHTTPServer(("127.0.0.1", 0), App)
        threading.Thread(target=cls.app.serve_forever, daemon=True).start()
        cls.app_address = "127.0.0.1:%d" % cls.app.server_address[1]
        # Long-lived files for clients that read files.
        cls.run_ok("entry", "create", "--spiffe-id", "/files", "--selector", "unix:uid:4294967294")

    @classmethod
    def tearDownClass(cls):
        cls.app.shutdown()
        for child in reversed(cls.children):
            child.kill()
            child.wait()
        shutil.rmtree(cls.dir, ignore_errors=True)

    @classmethod
    def run_ok(cls, *args):
        out = subprocess.run([BIN, *args], env=cls.env, capture_output=True, text=True, timeout=60)
        assert out.returncode == 0, f"{args}: {out.stderr}"
        return out.stdout

    @classmethod
    def start(cls, *args):
        log = open(os.path.join(cls.dir, f"log-{len(cls.children)}"), "w")
        child = subprocess.Popen([BIN, *args, "-o", "json"], env=cls.env, stderr=log,
                                 stdout=subprocess.PIPE, text=True)
        cls.children.append(child)
        line = child.stdout.readline()
        assert line, f"{args}: {open(log.name).read()}"
        return json.loads(line)

    @classmethod
    def spawn(cls, *args):
        log = open(os.path.join(cls.dir, f"log-{len(cls.children)}"), "w")
        child = subprocess.Popen(args, env=cls.env, stderr=log, stdout=log)
        cls.children.append(child)
        return log.name

    def inbound(self, identity, *extra):
        ready = self.start("proxy", "inbound", "--listen", "127.0.0.1:0", "--forward",
                           self.app_address, "--id", identity, *extra)
        return ready["listen"][0]

    def outbound(self, identity, upstream, peer, *extra):
        ready = self.start("proxy", "outbound", "--listen", "127.0.0.1:0", "--upstream", upstream,
                           "--peer-id", peer, "--id", identity, *extra)
        return ready["listen"][0]

    def files(self, identity):
        """The SVID of `identity` as PEM files, through the Python client."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
        from spiffe import WorkloadApiClient
        with WorkloadApiClient() as client:
            context = client.fetch_x509_context()
        svid = next(s for s in context.x509_svids if str(s.spiffe_id) == identity)
        d = tempfile.mkdtemp(dir=self.dir)
        with open(f"{d}/cert.pem", "wb") as f:
            f.writelines(c.public_bytes(Encoding.PEM) for c in svid.cert_chain)
        with open(f"{d}/key.pem", "wb", opener=lambda p, fl: os.open(p, fl, 0o600)) as f:
            f.write(svid.private_key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        shutil.copy(f"{self.dir}/bundle.pem", f"{d}/bundle.pem")
        return d

    # -- Python, on grpcio: its :authority is what ordinary HTTP/2 libraries refuse

    def test_python_x509_and_jwt(self):
        from spiffe import SpiffeId, TrustDomain, WorkloadApiClient
        with WorkloadApiClient() as client:
            ids = {str(s.spiffe_id) for s in client.fetch_x509_svids()}
            self.assertEqual(ids, {WEB, API, ENVOY, GO})
            bundles = client.fetch_x509_bundles()
            bundle = bundles.get_bundle_for_trust_domain(TrustDomain("corp.test"))
            self.assertEqual(len(bundle.x509_authorities), 1)
            token = client.fetch_jwt_svid({"reports"}, SpiffeId(WEB))
            self.assertEqual(str(token.spiffe_id), WEB)
            self.assertEqual(str(client.validate_jwt_svid(token.token, "reports").spiffe_id), WEB)
            with self.assertRaises(Exception):
                client.validate_jwt_svid(token.token, "others")
            jwt = client.fetch_jwt_bundles()
            self.assertIsNotNone(jwt.get_bundle_for_trust_domain(TrustDomain("corp.test")))

    def test_python_stream_across_a_rotation(self):
        from spiffe import WorkloadApiClient
        serials, errors, done = set(), [], threading.Event()

        def update(context):
            svid = next(s for s in context.x509_svids if str(s.spiffe_id) == WEB)
            serials.add(svid.leaf.serial_number)
            if len(serials) >= 3:
                done.set()

        client = WorkloadApiClient()
        handle = client.stream_x509_contexts(update, errors.append)
        self.assertTrue(done.wait(60), f"{len(serials)} certificates, {errors}")
        handle.cancel()
        client.close()
        self.assertEqual(errors, [])

    # -- Rust and Go

    def test_rust(self):
        need("the Rust client", os.environ.get("INTEROP_RUST"))
        out = subprocess.run([os.environ["INTEROP_RUST"], WEB], env=self.env, capture_output=True,
                             text=True, timeout=90)
        self.assertEqual(out.stdout.strip(), "rotated", out.stderr)

    def go(self, *args, timeout=90):
        need("the Go client", os.environ.get("INTEROP_GO"))
        out = subprocess.run([os.environ["INTEROP_GO"], *args], env=self.env, capture_output=True,
                             text=True, timeout=timeout)
        self.assertEqual(out.returncode, 0, out.stderr)
        return json.loads(out.stdout)

    def test_go_client_through_rotations(self):
        inbound = self.inbound(API)
        result = self.go("client", GO, API, f"https://{inbound}/", "15")
        self.assertEqual(result["failures"], 0, result)
        self.assertGreaterEqual(result["server_certificates"], 2, result)
        self.assertIn(f"URI={GO}", result["body"])

    def test_go_server_through_rotations(self):
        need("the Go client", os.environ.get("INTEROP_GO"))
        address = f"127.0.0.1:{free_port()}"
        self.spawn(os.environ["INTEROP_GO"], "server", GO, WEB, address)
        outbound = self.outbound(WEB, address, GO, "--protocol", "http")
        eventually("the Go server", lambda: get(f"http://{outbound}/")[0] == 200)
        end, failed = time.time() + 15, []
        while time.time() < end:
            status, body, _ = get(f"http://{outbound}/")
            if status != 200 or body != f"hello {WEB}":
                failed.append((status, body))
            time.sleep(0.02)
        self.assertEqual(failed, [])

    # -- Envoy, with certificates and validation context from our SDS

    def test_envoy_both_directions(self):
        need("Envoy", os.environ.get("INTEROP_ENVOY"))
        for delta in (False, True):
            with self.subTest(delta=delta):
                self.envoy(delta)

    def envoy(self, delta):
        inbound = self.inbound(API)
        terminates, originates, admin = free_port(), free_port(), free_port()
        sds = {"api_config_source": {
            "api_type": "DELTA_GRPC" if delta else "GRPC", "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}]},
            "resource_api_version": "V3"}
        context = {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3",
                           "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificate_sds_secret_configs": [{"name": ENVOY, "sds_config": sds}],
            "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": sds}}
        tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."

        def manager(prefix, route):
            return {"name": "envoy.filters.network.http_connection_manager", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network."
                         "http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": prefix,
                "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
                "route_config": {"virtual_hosts": [{
                    "name": "all", "domains": ["*"],
                    "response_headers_to_add": [{"header": {
                        "key": "x-peer", "value": "%DOWNSTREAM_PEER_URI_SAN%"}}],
                    "routes": [{"match": {"prefix": "/"}, **route}]}]}}}

        def listener(port, filters, socket_config=None):
            chain = {"filters": [filters]}
            if socket_config:
                chain["transport_socket"] = socket_config
            return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [chain]}

        host, port = inbound.split(":")
        config = {
            "node": {"id": "e", "cluster": "e"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
            "static_resources": {
                "listeners": [
                    listener(terminates, manager("in", {"direct_response": {"status": 200}}), {
                        "name": "tls", "typed_config": {
                            "@type": tls + "DownstreamTlsContext",
                            "require_client_certificate": True, "common_tls_context": context}}),
                    listener(originates, manager("out", {"route": {"cluster": "ours"}}))],
                "clusters": [
                    {"name": "ours", "type": "STATIC", "load_assignment": {
                        "cluster_name": "ours", "endpoints": [{"lb_endpoints": [{"endpoint": {
                            "address": {"socket_address": {
                                "address": host, "port_value": int(port)}}}}]}]},
                     "transport_socket": {"name": "tls", "typed_config": {
                         "@type": tls + "UpstreamTlsContext", "common_tls_context": context}}},
                    {"name": "agent", "type": "STATIC", "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3."
                                     "HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}}}},
                     "load_assignment": {"cluster_name": "agent", "endpoints": [{"lb_endpoints": [
                         {"endpoint": {"address": {"pipe": {
                             "path": self.socket.removeprefix("unix://")}}}}]}]}}]}}
        path = os.path.join(self.dir, f"envoy-{delta}.json")
        with open(path, "w") as f:
            json.dump(config, f)
        log = self.spawn(os.environ["INTEROP_ENVOY"], "-c", path, "--concurrency", "1",
                         "--base-id", str(os.getpid() % 10000 + (1 if delta else 0)), "-l", "warning")
        try:
            # Envoy -> our proxy
            eventually("Envoy's call", lambda: get(f"http://127.0.0.1:{originates}/")[0] == 200)
            body = get(f"http://127.0.0.1:{originates}/")[1]
            self.assertIn(f"URI={ENVOY}", body)
            # our proxy -> Envoy
            outbound = self.outbound(WEB, f"127.0.0.1:{terminates}", ENVOY)
            answer = eventually("the call to Envoy", lambda: (
                lambda r: r if r[0] == 200 else None)(get(f"http://{outbound}/")))
            self.assertEqual(answer[2]["x-peer"], WEB)
            # Both go on across a rotation, on new connections.
            end, failed = time.time() + 13, []
            while time.time() < end:
                for url in (f"http://127.0.0.1:{originates}/", f"http://{outbound}/"):
                    status, text, _ = get(url)
                    if status != 200:
                        failed.append((url, status, text))
                time.sleep(0.05)
            self.assertEqual(failed, [])
        except AssertionError as e:
            raise AssertionError(f"{e}\n{open(log).read()[-3000:]}") from e

    # -- OpenSSL and curl

    def test_openssl_client(self):
        need("openssl", "openssl")
        inbound = self.inbound(API)
        d = self.files(WEB)
        out = subprocess.run(
            ["openssl", "s_client", "-connect", inbound, "-cert", f"{d}/cert.pem", "-cert_chain",
             f"{d}/cert.pem", "-key", f"{d}/key.pem", "-CAfile", f"{d}/bundle.pem",
             "-verify_return_error", "-ign_eof", "-quiet"],
            input="GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            capture_output=True, text=True, timeout=20)
        self.assertIn(f"URI={WEB}", out.stdout, out.stderr)

    def test_openssl_server(self):
        need("openssl", "openssl")
        d, port = self.files(API), free_port()
        self.spawn("openssl", "s_server", "-accept", str(port), "-cert", f"{d}/cert.pem",
                   "-cert_chain", f"{d}/cert.pem", "-key", f"{d}/key.pem", "-CAfile",
                   f"{d}/bundle.pem", "-Verify", "5", "-verify_return_error", "-www", "-tls1_3")
        outbound = self.outbound(WEB, f"127.0.0.1:{port}", API)
        body = eventually("the page", lambda: get(f"http://{outbound}/")[1])
        self.assertIn("TLSv1.3", body)

    def test_curl(self):
        need("curl", "curl")
        inbound = self.inbound(API)
        d = self.files(WEB)
        # No DNS name is in the certificate: curl's own name check is off, the proxy's checks are not.
        # countersign:allow client-verify-disabled reason=the server is on loopback and proven by what it answers
        good = subprocess.run(
            # countersign:allow client-verify-disabled reason=as above
            ["curl", "-sS", "-k", "--cert", f"{d}/cert.pem", "--key", f"{d}/key.pem",
             f"https://{inbound}/"], capture_output=True, text=True, timeout=20)
        self.assertIn(f"URI={WEB}", good.stdout, good.stderr)
        # countersign:allow client-verify-disabled reason=as above
        bare = subprocess.run(["curl", "-sS", "-k", f"https://{inbound}/"], capture_output=True,
                              text=True, timeout=20)
        self.assertNotEqual(bare.returncode, 0)
        plain = subprocess.run(["curl", "-sS", f"http://{inbound}/"], capture_output=True,
                               text=True, timeout=20)
        self.assertIn("CS2101", plain.stdout)


if __name__ == "__main__":
    unittest.main()
