"""External engines, with real ones: Envoy asks us (ext_authz), we ask OPA. Run by tests/interop/run.

Envoy with `countersign ext-authz` behind it must decide every request as `policy decide` does; the proxy
with a real `opa` behind it must decide as that `opa` does when it is asked directly.
"""

import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

import yaml

from ports import free_port

sys.path.insert(0, os.path.dirname(__file__))
from differential import (  # noqa: E402
    BIN, IDENTITIES, Client, Envoy, certificates, make_policy, make_request, question,
)

SEED = int(os.environ.get("ENGINES_SEED", "20261122"))
SETS, PER_SET = 12, 40
OPA = os.environ.get("INTEROP_OPA", "")

# A policy as OPA's own tutorial for Envoy has them in shape: the path in segments, the method, a header.
REGO = """
package envoy.authz
import rego.v1

default allow := false

allow if {
    input.attributes.request.http.method == "GET"
    input.parsed_path[0] == "a"
}

allow if {
    input.source_principal == "spiffe://corp.test/ns/shop/sa/web"
    input.parsed_query.role[_] == "admin"
}

decision := {"allowed": true, "headers": {"x-user": "opa"}, "request_headers_to_remove": ["x-role"]} if allow
decision := {"allowed": false, "http_status": 418, "body": "teapot", "headers": {"x-why": "rego"}} if not allow
"""


def need(tool, path):
    if path and os.path.exists(path):
        return
    if os.environ.get("CI") == "true":
        raise AssertionError(f"{tool} is missing")
    raise unittest.SkipTest(f"SKIPPED: {tool} is missing")


def wait(port, process, log):
    end = time.time() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.time() > end:
                raise AssertionError("does not start:\n" + open(log).read()[-2000:]) from None
            time.sleep(0.05)


class Asking(Envoy):
    """Envoy whose only opinion is ours: one ext_authz service for all listeners."""

    def __init__(self, directory, authz):
        self.authz = authz
        super().__init__(directory, [{"tcp": True, "policies": []}])

    def http(self, cases, port, directory):
        authz = {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
            "transport_api_version": "V3",
            "include_peer_certificate": True,
            "include_tls_session": True,
            "grpc_service": self.service(),
        }
        router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "h",
            "use_remote_address": True,
            "http_filters": [
                {"name": "ext_authz", "typed_config": authz},
                {"name": "router", "typed_config": {"@type": router}},
            ],
            "route_config": {"virtual_hosts": [
                {"name": "a", "domains": ["*"],
                 "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]}]},
        }
        return self.listener(port, [{"name": "h", "typed_config": manager}], directory)

    def network(self, policies, port, directory):
        authz = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
            "stat_prefix": "a",
            "transport_api_version": "V3",
            "include_peer_certificate": True,
            "include_tls_session": True,
            "grpc_service": self.service(),
        }
        echo = "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"
        filters = [{"name": "a", "typed_config": authz}, {"name": "echo", "typed_config": {"@type": echo}}]
        return self.listener(port, filters, directory)

    def service(self):
        host, port = self.authz
        return {"google_grpc": {"target_uri": f"{host}:{port}", "stat_prefix": "g"}, "timeout": "5s"}


class EnvoyAsksUs(unittest.TestCase):
    def test_envoy_decides_as_policy_decide_does(self):
        need("envoy", os.environ["INTEROP_ENVOY"])
        rnd = random.Random(SEED)
        directory = tempfile.mkdtemp(prefix="cs-authz-")
        certificates(directory)
        asked = 0
        denied = 0
        try:
            authz_port = free_port()
            policies = f"{directory}/policies"
            os.mkdir(policies)
            file = f"{policies}/all.yaml"
            log = f"{directory}/authz.log"

            def write(documents):
                with open(file + ".new", "w") as f:
                    f.write("---\n".join(json.dumps(d) + "\n" for d in documents))
                os.rename(file + ".new", file)

            write([make_policy(rnd, 0)])
            args = ["--namespace", "shop", "--trust-domain", "corp.test"]
            metrics = free_port()
            with open(log, "wb") as out:
                ours = subprocess.Popen(
                    [BIN, "ext-authz", "--listen", f"127.0.0.1:{authz_port}", "--policy", policies,
                     "--metrics", f"127.0.0.1:{metrics}", *args],
                    stdout=out, stderr=out)
            wait(authz_port, ours, log)
            envoy = Asking(directory, ("127.0.0.1", authz_port))
            client = Client(directory)
            generation = 1
            for number in range(SETS):
                documents = [make_policy(rnd, n) for n in range(rnd.randint(1, 4))]
                write(documents)
                generation += 1
                self.await_generation(metrics, generation, log)
                requests = [make_request(rnd, tcp=rnd.random() < 0.2) for _ in range(PER_SET)]
                for r in requests:
                    # What Envoy tells about ports and hosts is its own; what is not normal is refused with 400.
                    if r["http"]:
                        r["http"]["headers"] = [h for h in r["http"]["headers"] if h[1]]
                port_of = lambda r: (  # noqa: E731
                    (envoy.http_plain if r["who"] == "plain" else envoy.http_tls) if r["http"]
                    else envoy.tcp[0][1 if r["who"] == "plain" else 0])
                lines = []
                for r in requests:
                    q = question(r)
                    q["destination"]["port"] = port_of(r)
                    if q.get("sni") is None:
                        q.pop("sni", None)
                    lines.append(json.dumps(q))
                out = subprocess.run(
                    [BIN, "policy", "decide", "--policies", policies, "--requests", "-", "--trust-domain", "corp.test"],
                    input="\n".join(lines), capture_output=True, text=True, timeout=60)
                decisions = [json.loads(l) for l in out.stdout.splitlines()]
                self.assertEqual(len(decisions), len(requests), out.stderr)
                for r, d in zip(requests, decisions):
                    if r["http"]:
                        status = client.http(envoy, 0, r)
                        got, what = status == 200, status
                        unusual = status == 400
                    else:
                        got = what = client.tcp(envoy, 0, r)
                        unusual = False
                    if unusual and not got:
                        # Stricter on purpose: Envoy would pass on another path than the one judged.
                        self.assertIn(r["http"]["path"].split("?")[0],
                                      ("/c%2fd", "/a/../b/z", "/%61", "//a"), r)
                        continue
                    self.assertEqual(got, d["allow"], f"{what}\n{json.dumps(r)}\n{d}\n{json.dumps(documents)}")
                    asked += 1
                    denied += not got
            self.assertGreater(asked, SETS * PER_SET // 2)
            self.assertGreater(denied, 20)
            self.assertGreater(asked - denied, 20)
            print(f"engines: Envoy asked {asked} times, {denied} denied, all as `policy decide` says")
        finally:
            for p in (locals().get("envoy"),):
                if p:
                    p.stop()
            if "ours" in locals():
                ours.terminate()
                ours.wait()
            shutil.rmtree(directory, ignore_errors=True)

    @staticmethod
    def await_generation(port, wanted, log):
        end = time.time() + 30
        while time.time() < end:
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
            for line in text.splitlines():
                if line.startswith("countersign_policy_generation ") and float(line.split()[1]) >= wanted:
                    return
            time.sleep(0.1)
        raise AssertionError("the policies were not read again:\n" + open(log).read()[-2000:])


class WeAskOpa(unittest.TestCase):
    def test_the_proxy_decides_as_opa_does(self):
        need("opa", OPA)
        rnd = random.Random(SEED)
        directory = tempfile.mkdtemp(prefix="cs-opa-")
        certificates(directory)
        children = []

        def start(*args):
            log = f"{directory}/log-{len(children)}"
            with open(log, "wb") as out:
                children.append(subprocess.Popen(args, stdout=out, stderr=out))
            return children[-1], log

        try:
            with open(f"{directory}/policy.rego", "w") as f:
                f.write(REGO)
            opa_port, listen, app_port = free_port(), free_port(), free_port()
            opa = start(OPA, "run", "--server", "--addr", f"127.0.0.1:{opa_port}", f"{directory}/policy.rego")
            app = start(sys.executable, "-m", "http.server", str(app_port), "--bind", "127.0.0.1",
                        "--directory", f"{directory}/www")
            os.mkdir(f"{directory}/www")
            with open(f"{directory}/providers.yaml", "w") as f:
                yaml.safe_dump({"extensionProviders": [{"name": "opa", "opa": {
                    "url": f"http://127.0.0.1:{opa_port}/v1/data/envoy/authz/decision", "timeout": "5s"}}]}, f)
            with open(f"{directory}/custom.yaml", "w") as f:
                yaml.safe_dump({
                    "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                    "metadata": {"name": "ask-opa", "namespace": "shop"},
                    "spec": {"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]}}, f)
            os.chmod(f"{directory}/server.key", 0o600)
            proxy = start(BIN, "proxy", "inbound", "--listen", f"127.0.0.1:{listen}", "--forward",
                          f"127.0.0.1:{app_port}", "--cert", f"{directory}/server.pem",
                          "--key", f"{directory}/server.key", "--bundle", f"{directory}/ca.pem",
                          "--policy", f"{directory}/custom.yaml", "--providers", f"{directory}/providers.yaml",
                          "--protocol", "http")
            wait(opa_port, *opa)
            wait(app_port, *app)
            wait(listen, *proxy)
            client = Client(directory)
            counts = {True: 0, False: 0}
            for _ in range(200):
                who = rnd.choice(["web", "api", "bank"])
                method = rnd.choice(["GET", "POST"])
                path = rnd.choice(["/a", "/a/b", "/b", "/", "/b?role=admin", "/b?role=user&role=admin", "/a%20b"])
                status, head = self.request(client, listen, who, method, path)
                bare, _, query = path.partition("?")
                told = {
                    "attributes": {"request": {"http": {"method": method, "path": path}}},
                    "parsed_path": [p.replace("%20", " ") for p in bare.lstrip("/").split("/")],
                    "parsed_query": {"role": [p.split("=")[1] for p in query.split("&") if p]} if query else {},
                    "source_principal": IDENTITIES[who][0][0],
                }
                body = json.dumps({"input": told}).encode()
                ask = urllib.request.Request(f"http://127.0.0.1:{opa_port}/v1/data/envoy/authz/allow", body,
                                             {"Content-Type": "application/json"})
                allowed = json.load(urllib.request.urlopen(ask, timeout=10))["result"]
                counts[allowed] += 1
                if allowed:
                    self.assertIn(status, (200, 404, 501), (who, method, path))
                else:
                    self.assertEqual(status, 418, (who, method, path))
                    self.assertIn("x-why: rego", head)
                    self.assertIn("CS3005", head)
            self.assertGreater(min(counts.values()), 20, counts)
            # The engine goes away: nobody gets in.
            opa[0].terminate()
            opa[0].wait()
            status, head = self.request(client, listen, "web", "GET", "/a")
            self.assertEqual(status, 403)
            self.assertIn("CS3006", head)
            print(f"engines: OPA asked 200 times, {counts[False]} denied, all as opa itself says")
        finally:
            for child in children:
                child.terminate()
                child.wait()
            shutil.rmtree(directory, ignore_errors=True)

    @staticmethod
    def request(client, port, who, method, path):
        with client.connect(port, who, "api.test", "127.0.0.1") as stream:
            stream.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
            data = b""
            try:
                while more := stream.recv(65536):
                    data += more
            except ssl.SSLError:
                pass
            head = data.split(b"\r\n\r\n")[0].decode()
            return int(head.split(" ", 2)[1]), head.replace("X-Countersign-Code", "x-countersign-code")


if __name__ == "__main__":
    unittest.main(verbosity=2)
