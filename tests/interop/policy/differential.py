"""The engine beside a real Envoy, on random policies and random requests. Run by tests/interop/run.

Policies become RBAC filters by a translator of our own (translate.py, checked against Istio's golden files);
Envoy and the engine in Istio's semantics must then say the same of every request. In strict semantics the
engine may refuse what Envoy allows, for reasons that are listed, and never the other way round.

    DIFFERENTIAL_SETS=2000 DIFFERENTIAL_SEED=7 tests/interop/run    # a long run, from another seed
"""

import copy
import datetime
import ipaddress
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ports import free_port

sys.path.insert(0, os.path.dirname(__file__))
from translate import translate  # noqa: E402

BIN = os.environ["COUNTERSIGN_BIN"]
ENVOY = os.environ["INTEROP_ENVOY"]
SETS = int(os.environ.get("DIFFERENTIAL_SETS", "90"))
SEED = int(os.environ.get("DIFFERENTIAL_SEED", "20261122"))
PER_SET = 27
DOMAIN = "corp.test"
VECTORS = os.environ.get(
    "COUNTERSIGN_VECTORS", os.path.join(os.path.dirname(__file__), "../../../../shared/vectors")
)

# name: URI SANs, DNS SANs, common name. `none` comes without a certificate, `plain` without TLS.
IDENTITIES = {
    "web": (["spiffe://corp.test/ns/shop/sa/web"], [], ""),
    "api": (["spiffe://corp.test/ns/shop/sa/api"], [], ""),
    "bank": (["spiffe://corp.test/ns/bank/sa/web"], [], ""),
    "evilns": (["spiffe://corp.test/ns/shop-evil/sa/web"], [], ""),
    "foreign": (["spiffe://evil.test/ns/shop/sa/web"], [], ""),
    "injected": (["spiffe://corp.test/ns/lab/sa/q/ns/shop/z"], [], ""),
    "suffixed": (["spiffe://corp.test/ns/shop/sa/web/more"], [], ""),
    "free": (["spiffe://corp.test/workload/web"], [], ""),
    "two": (["spiffe://corp.test/ns/lab/sa/x", "spiffe://corp.test/ns/shop/sa/web"], [], ""),
    "dns": ([], ["web.shop.corp.test"], ""),
    "cn": ([], [], "web"),
    "none": None,
    "plain": None,
}
STRICTLY_NOBODY = {"two", "dns", "cn"}


# --- certificates -----------------------------------------------------------------------------------


def certificates(directory):
    now = datetime.datetime.now(datetime.timezone.utc)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "differential CA")])

    def build(subject, key, signer, issuer, extensions):
        b = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension, critical in extensions:
            b = b.add_extension(extension, critical)
        return b.sign(signer, hashes.SHA256())

    def write(name, cert, key):
        with open(f"{directory}/{name}.pem", "wb") as f:
            f.write(cert.public_bytes(serialization.Encoding.PEM))
        with open(f"{directory}/{name}.key", "wb") as f:
            f.write(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )

    ca_usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    ca = build(ca_name, ca_key, ca_key, ca_name, [(x509.BasicConstraints(True, None), True), (ca_usage, True)])
    write("ca", ca, ca_key)
    leaf_usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    for name, facts in {**IDENTITIES, "server": (["spiffe://corp.test/ns/shop/sa/server"], [], "")}.items():
        if facts is None:
            continue
        uris, dns, cn = facts
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)] if cn else [])
        names = [x509.UniformResourceIdentifier(u) for u in uris] + [x509.DNSName(d) for d in dns]
        extensions = [(leaf_usage, True)]
        if names:
            extensions.append((x509.SubjectAlternativeName(names), not cn))
        write(name, build(subject, key, ca_key, ca_name, extensions), key)


# --- Envoy ------------------------------------------------------------------------------------------


class Envoy:
    """One process for many sets of policies: a route for each on HTTP, a listener for each on TCP."""

    def __init__(self, directory, cases):
        self.http_tls, self.http_plain = free_port(), free_port()
        self.tcp = {i: (free_port(), free_port()) for i, c in enumerate(cases) if c["tcp"]}
        listeners = [self.http(cases, self.http_tls, directory), self.http(cases, self.http_plain, None)]
        for i, (tls, plain) in self.tcp.items():
            listeners.append(self.network(cases[i]["policies"], tls, directory))
            listeners.append(self.network(cases[i]["policies"], plain, None))
        config = {"static_resources": {"listeners": listeners}}
        path = f"{directory}/envoy-{random.randrange(1 << 30)}.json"
        with open(path, "w") as f:
            json.dump(config, f)
        self.log = open(path + ".log", "wb")
        base = str(2000 + random.randrange(30000))
        self.process = subprocess.Popen(
            [ENVOY, "-c", path, "--concurrency", "1", "-l", "error", "--base-id", base],
            stdout=self.log,
            stderr=self.log,
        )
        last = max([self.http_tls, self.http_plain] + [p for pair in self.tcp.values() for p in pair])
        for port in {self.http_tls, self.http_plain, last, *[p for pair in self.tcp.values() for p in pair]}:
            end = time.time() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if self.process.poll() is not None or time.time() > end:
                        with open(path + ".log") as f:
                            raise AssertionError("Envoy does not start:\n" + f.read()[-2000:]) from None
                    time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()

    @staticmethod
    def chain(filters, directory):
        chain = {"filters": filters}
        if directory:
            tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
            pem = lambda n: {"filename": f"{directory}/{n}"}  # noqa: E731
            chain["transport_socket"] = {
                "name": "tls",
                "typed_config": {
                    "@type": tls,
                    "require_client_certificate": False,
                    "common_tls_context": {
                        "tls_certificates": [{"certificate_chain": pem("server.pem"), "private_key": pem("server.key")}],
                        "validation_context": {"trusted_ca": pem("ca.pem")},
                    },
                },
            }
        return chain

    def listener(self, port, filters, directory):
        inspector = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
        out = {
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "filter_chains": [self.chain(filters, directory)],
        }
        if directory:
            out["listener_filters"] = [{"name": "tls", "typed_config": {"@type": inspector}}]
        return out

    def http(self, cases, port, directory):
        rbac = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3."
        routes = []
        for i, case in enumerate(cases):
            per = {}
            for name, action in [("deny", "DENY"), ("allow", "ALLOW")]:
                rules = translate(ported(case["policies"], port), action)
                inner = {"rules": rules} if rules is not None else {}
                per[name] = {"@type": rbac + "RBACPerRoute", "rbac": inner}
            routes.append(
                {
                    "match": {
                        "prefix": "/",
                        "headers": [{"name": "x-case", "string_match": {"exact": str(i)}}],
                    },
                    "direct_response": {"status": 200},
                    "typed_per_filter_config": per,
                }
            )
        router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "h",
            "normalize_path": True,
            "use_remote_address": True,
            "http_filters": [
                {"name": "deny", "typed_config": {"@type": rbac + "RBAC"}},
                {"name": "allow", "typed_config": {"@type": rbac + "RBAC"}},
                {"name": "router", "typed_config": {"@type": router}},
            ],
            "route_config": {"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": routes}]},
        }
        return self.listener(port, [{"name": "h", "typed_config": manager}], directory)

    def network(self, policies, port, directory):
        rbac = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"
        filters = []
        for action in ["DENY", "ALLOW"]:
            rules = translate(ported(policies, port), action, tcp=True)
            if rules is not None:
                filters.append(
                    {"name": action, "typed_config": {"@type": rbac, "rules": rules, "stat_prefix": action.lower()}}
                )
        echo = "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"
        filters.append({"name": "echo", "typed_config": {"@type": echo}})
        return self.listener(port, filters, directory)


OUR_PORT = 8080


def ported(policies, port):
    """The policies with Envoy's port in the place of ours."""
    text = json.dumps(policies).replace(f'"{OUR_PORT}"', f'"{port}"')
    return json.loads(text)


# --- requests ---------------------------------------------------------------------------------------


class Client:
    def __init__(self, directory):
        self.directory, self.kept = directory, {}

    def connect(self, port, identity, sni, source):
        raw = socket.create_connection(("127.0.0.1", port), 10, (source, 0))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if identity == "plain":
            return raw
        context = ssl.create_default_context(cafile=f"{self.directory}/ca.pem")
        # countersign:allow hostname-verify-disabled reason=the servers under test have SPIFFE IDs and no names
        context.check_hostname = False
        if identity != "none":
            context.load_cert_chain(f"{self.directory}/{identity}.pem", f"{self.directory}/{identity}.key")
        return context.wrap_socket(raw, server_hostname=sni)

    def http(self, envoy, case, request):
        who, sni, source = request["who"], request["sni"], request["source"]
        port = envoy.http_plain if who == "plain" else envoy.http_tls
        key = (port, who, sni, source)
        h = request["http"]
        head = f"{h['method']} {h['path']} HTTP/1.1\r\nHost: {h['host']}\r\nx-case: {case}\r\n"
        head += "".join(f"{n}: {v}\r\n" for n, v in h["headers"]) + "Content-Length: 0\r\n\r\n"
        for attempt in (1, 2):
            stream = self.kept.get(key) or self.connect(*key)
            try:
                stream.sendall(head.encode())
                answer = self.read(stream)
                self.kept[key] = stream
                return int(answer.split(b" ", 2)[1])
            except (OSError, IndexError, ValueError):
                self.kept.pop(key, None)
                stream.close()
                if attempt == 2:
                    raise

    @staticmethod
    def read(stream):
        data = b""
        while b"\r\n\r\n" not in data:
            more = stream.recv(65536)
            if not more:
                raise OSError("closed")
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        while len(body) < length:
            body += stream.recv(65536)
        return head

    def tcp(self, envoy, case, request):
        tls, plain = envoy.tcp[case]
        who = request["who"]
        try:
            stream = self.connect(plain if who == "plain" else tls, who, request["sni"], request["source"])
            with stream:
                stream.sendall(b"hello")
                return stream.recv(16) == b"hello"
        except (ConnectionError, ssl.SSLError):
            return False


# --- random policies and requests -------------------------------------------------------------------

PRINCIPALS = [
    "corp.test/ns/shop/sa/web", "corp.test/ns/shop/*", "corp.test/ns/shop*", "*/sa/web", "*",
    "evil.test/ns/shop/sa/web", "corp.test/workload/*", "corp.test/ns/bank/sa/web", "*web",
]
VALUES = {
    "principals": PRINCIPALS,
    "namespaces": ["shop", "bank", "sho*", "*op", "*", "lab"],
    "serviceAccounts": ["web", "shop/web", "bank/web", "lab/q"],
    "trustDomains": ["corp.test", "evil.test", "*.test", "corp*", "*"],
    "ipBlocks": ["127.0.0.1", "127.0.0.2/32", "127.0.0.0/31", "10.0.0.0/8"],
    "remoteIpBlocks": ["127.0.0.1", "127.0.0.0/30"],
    "hosts": ["api.test", "API.test:80", "*.test", "api*", "*"],
    "ports": [str(OUR_PORT), "81"],
    "methods": ["GET", "POST", "P*", "*"],
    "paths": ["/a", "/a/*", "*/secret", "/a/{*}", "/b/{**}", "/{*}/secret", "*", "/A", "/a/b;x", "/c%2fd"],
}
CONDITIONS = {
    "source.ip": VALUES["ipBlocks"],
    "remote.ip": VALUES["remoteIpBlocks"],
    "source.namespace": VALUES["namespaces"],
    "source.principal": PRINCIPALS,
    "source.serviceAccount": VALUES["serviceAccounts"],
    "source.trustDomain": VALUES["trustDomains"],
    "destination.ip": ["127.0.0.1", "10.0.0.0/8"],
    "destination.port": VALUES["ports"],
    "connection.sni": ["api.test", "*.test", "api*", "*"],
    "request.headers[X-Role]": ["admin", "ad*", "*in", "*"],
    "request.headers[:method]": ["GET", "P*"],
}
SOURCE = ["principals", "namespaces", "serviceAccounts", "trustDomains", "ipBlocks", "remoteIpBlocks"]
OPERATION = ["hosts", "ports", "methods", "paths"]


def group(rnd, names):
    out = {}
    for name in rnd.sample(names, rnd.randint(1, 2)):
        if name == "serviceAccounts" and ("principals" in out or "namespaces" in out):
            continue
        if name in ("principals", "namespaces") and "serviceAccounts" in out:
            continue
        if rnd.random() < 0.3:
            out["not" + name[0].upper() + name[1:]] = rnd.sample(VALUES[name], rnd.randint(1, 2))
        else:
            out[name] = rnd.sample(VALUES[name], rnd.randint(1, min(3, len(VALUES[name]))))
    return out


def make_rule(rnd):
    rule = {}
    if rnd.random() < 0.7:
        rule["from"] = [{"source": group(rnd, SOURCE)} for _ in range(rnd.randint(1, 2))]
    if rnd.random() < 0.6:
        rule["to"] = [{"operation": group(rnd, OPERATION)} for _ in range(rnd.randint(1, 2))]
    if rnd.random() < 0.4:
        key = rnd.choice(list(CONDITIONS))
        name = "notValues" if rnd.random() < 0.3 else "values"
        rule["when"] = [{"key": key, name: rnd.sample(CONDITIONS[key], rnd.randint(1, 2))}]
    return rule


def make_policy(rnd, number):
    action = rnd.choice(["ALLOW", "ALLOW", "DENY"])
    rules = [make_rule(rnd) for _ in range(rnd.randint(1, 3))]
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": f"p{number}", "namespace": "shop"},
        "spec": {"action": action, "rules": rules},
    }


def make_request(rnd, tcp):
    out = {
        "who": rnd.choice(list(IDENTITIES)),
        "source": rnd.choice(["127.0.0.1", "127.0.0.2", "127.0.0.3"]),
        "sni": rnd.choice(["api.test", "web.test", "other"]),
        "http": None,
    }
    if out["who"] == "plain":
        out["sni"] = None
    if not tcp:
        paths = ["/a", "/a/b", "/a/secret", "/b/", "/b/x/y", "/x/secret", "/A", "/a/b;x", "/c%2fd", "/a/../b/z?q=/a", "/%61", "//a"]
        headers = [[], [["X-Role", "admin"]], [["x-role", "user"], ["X-ROLE", "admin"]], [["X-Role", ""]]]
        out["http"] = {
            "method": rnd.choice(["GET", "POST", "PUT"]),
            "host": rnd.choice(["api.test", "API.TEST", "api.test:80", "other", "x.test"]),
            "path": rnd.choice(paths),
            "headers": rnd.choice(headers),
        }
    return out


def question(request):
    """The request as `policy decide` reads it."""
    source = {"ip": request["source"]}
    facts = IDENTITIES[request["who"]]
    if facts:
        uris, dns, cn = facts
        source["cert"] = {"uri_sans": uris, "dns_sans": dns, "subject": f"CN={cn}" if cn else ""}
    return {
        "source": source,
        "destination": {"namespace": "shop", "ip": "127.0.0.1", "port": OUR_PORT},
        "http": request["http"],
        "sni": request["sni"],
    }


def decide(directory, policies, requests, *flags):
    name = f"{directory}/{random.randrange(1 << 30)}"
    with open(name + ".yaml", "w") as f:
        yaml.safe_dump_all(policies, f)
    with open(name + ".jsonl", "w") as f:
        f.writelines(json.dumps(question(r)) + "\n" for r in requests)
    out = subprocess.run(
        [BIN, "policy", "decide", "--policies", name + ".yaml", "--requests", name + ".jsonl"]
        + ["--trust-domain", DOMAIN, *flags],
        capture_output=True,
        text=True,
    )
    if out.returncode != 0:
        raise AssertionError(out.stderr + open(name + ".yaml").read())
    return [json.loads(line) for line in out.stdout.splitlines()]


def explained(policies, request):
    """Whether one of the listed differences can be why strict refuses what Istio's semantics allow."""
    if request["who"] in STRICTLY_NOBODY:
        return "not exactly one SPIFFE ID"
    text = json.dumps(policies)
    if any(f in text for f in ("amespaces", "erviceAccount", "source.namespace")):
        return "namespaces and accounts are parsed segments of the local trust domain"
    if any(f'"{p}"' in text for p in ("corp.test/ns/shop*", "*web")):
        return "a pattern stays within its segment"
    if "osts" in text:
        return "a refused host is refused with any port"
    if '"/A"' in text or '"/c%2fd"' in text or '"/a/b;x"' in text:
        return "paths of policies are brought into normal form"
    return None


# --- the tests --------------------------------------------------------------------------------------


class Translator(unittest.TestCase):
    """The translator gives what Istio's own builder gives."""

    def test_golden_files(self):
        archive = os.path.join(VECTORS, "istio-policy-testdata.tgz")
        if not os.path.exists(archive):
            if os.environ.get("CI") == "true":
                raise AssertionError(f"{archive} is missing")
            raise unittest.SkipTest(f"SKIPPED: {archive} is missing")
        base = "pilot/pkg/security/authz/builder/testdata/"
        files = {}
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                name = member.name.removeprefix("./")
                if name.startswith(base) and name.endswith(".yaml"):
                    files[name.removeprefix(base)] = tar.extractfile(member).read().decode()
        compared = 0
        for name in [
            "http/allow-empty-rule", "http/allow-nil-rule", "http/allow-path", "http/deny-empty-rule",
            "http/multiple-policies", "http/single-policy", "http/trust-domains", "tcp/allow-both-http-tcp",
            "tcp/allow-only-http", "tcp/deny-both-http-tcp",
        ]:
            given = [d for d in yaml.safe_load_all(files[name + "-in.yaml"]) if d]
            self.strip(given)
            expected = yaml.safe_load(files[name + "-out.yaml"])["typedConfig"].get("rules", {})
            self.strip_envoy(expected)
            action = expected.get("action", "ALLOW")
            got = translate(given, action, tcp=name.startswith("tcp"))
            if not got["policies"]:
                got.pop("policies")
            self.maxDiff = None
            self.assertEqual(got, expected, name)
            compared += 1
        self.assertEqual(compared, 10)

    # Facts of Envoy's own filters, and claims of tokens, are not part of the comparison.
    SKIPPED = ("experimental.", "request.auth.audiences", "request.auth.presenter", "request.auth.claims")

    def strip(self, policies):
        for p in policies:
            for rule in (p.get("spec") or {}).get("rules") or []:
                if rule and rule.get("when"):
                    rule["when"] = [c for c in rule["when"] if not c["key"].startswith(self.SKIPPED)]

    def strip_envoy(self, rbac):
        def unwanted(node):
            text = json.dumps(node)
            claims = ("audiences", "presenter", '"key": "aud"', '"key": "azp"', '"orMatch"')
            return '"metadata"' in text and ("envoy.filters.a.b" in text or any(c in text for c in claims)) or (
                '"metadata"' in text and '"key": "iss"' in text and '"key": "sub"' not in text
            )

        for policy in rbac.get("policies", {}).values():
            for part, inner in (("permissions", "andRules"), ("principals", "andIds")):
                for item in policy[part]:
                    if inner in item:
                        key = "rules" if inner == "andRules" else "ids"
                        item[inner][key] = [n for n in item[inner][key] if not unwanted(n)]


class Differential(unittest.TestCase):
    """Envoy and the engine say the same."""

    def setUp(self):
        if not os.path.exists(ENVOY):
            if os.environ.get("CI") == "true":
                raise AssertionError("Envoy is missing")
            raise unittest.SkipTest("SKIPPED: Envoy is missing")
        self.dir = tempfile.mkdtemp(prefix="cs-diff-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        certificates(self.dir)

    def ask(self, cases):
        """Envoy's and the engine's answers, for every request of every case."""
        envoy, client = Envoy(self.dir, cases), Client(self.dir)
        try:
            out = []
            for i, case in enumerate(cases):
                theirs = []
                for r in case["requests"]:
                    if case["tcp"]:
                        theirs.append(client.tcp(envoy, i, r))
                    else:
                        status = client.http(envoy, i, r)
                        self.assertIn(status, (200, 403), r)
                        theirs.append(status == 200)
                ours = decide(self.dir, case["policies"], case["requests"], "--compat", "istio")
                # With Envoy's normalization: another one asks about another path.
                strict = decide(self.dir, case["policies"], case["requests"], "--normalization", "base")
                out.append((theirs, ours, strict))
            return out
        finally:
            envoy.stop()

    def test_random_policies(self):
        rnd = random.Random(SEED)
        cases = []
        for n in range(SETS):
            tcp = n % 4 == 3
            policies = [make_policy(rnd, k) for k in range(rnd.randint(1, 4))]
            requests = [make_request(rnd, tcp) for _ in range(PER_SET)]
            cases.append({"policies": policies, "requests": requests, "tcp": tcp})
        asked = allowed = stricter = 0
        for start in range(0, len(cases), 60):
            part = cases[start : start + 60]
            for case, (theirs, ours, strict) in zip(part, self.ask(part)):
                for request, t, o, s in zip(case["requests"], theirs, ours, strict):
                    asked += 1
                    allowed += t
                    if t != o["allow"]:
                        self.fail(self.report(case, request))
                    if s["allow"] and not t:
                        self.fail(f"strict allows what Envoy refuses: {request}\n{yaml.safe_dump_all(case['policies'])}")
                    if t and not s["allow"]:
                        stricter += 1
                        why = explained(case["policies"], request)
                        self.assertIsNotNone(why, f"{request}\n{s}\n{yaml.safe_dump_all(case['policies'])}")
        print(f"{asked} requests, {allowed} allowed by both, {stricter} refused only in strict ... ", end="", file=sys.stderr)
        # A generator that nothing passes, or everything, would prove nothing.
        self.assertGreater(allowed, asked // 20)
        self.assertGreater(asked - allowed, asked // 20)

    def report(self, case, request):
        """The difference with everything left out that it does not need."""
        policies = case["policies"]
        for _ in range(12):
            smaller = [{"policies": p, "requests": [request], "tcp": case["tcp"]} for p in variants(policies)]
            if not smaller:
                break
            for candidate, (theirs, ours, _) in zip(smaller, self.ask(smaller)):
                if theirs[0] != ours[0]["allow"]:
                    policies = candidate["policies"]
                    break
            else:
                break
        last = {"policies": policies, "requests": [request], "tcp": case["tcp"]}
        (theirs, ours, _), *_ = self.ask([last])
        return f"Envoy allows: {theirs[0]}; we: {ours[0]}\n{request}\n{yaml.safe_dump_all(policies)}seed {SEED}"


def variants(policies):
    """Every set with one policy, rule, group, field or value less."""

    def less(node):
        if isinstance(node, list):
            for i in range(len(node)):
                yield node[:i] + node[i + 1 :]
                for inner in less(node[i]):
                    yield node[:i] + [inner] + node[i + 1 :]
        elif isinstance(node, dict):
            for key in node:
                if key in ("from", "to", "when") or key in VALUES or key.startswith("not"):
                    yield {k: v for k, v in node.items() if k != key}
                for inner in less(node[key]):
                    yield {**node, key: inner}

    out = []
    for i, p in enumerate(policies):
        if len(policies) > 1:
            out.append(policies[:i] + policies[i + 1 :])
        for rules in less(p["spec"]["rules"]):
            smaller = copy.deepcopy(p)
            smaller["spec"]["rules"] = rules
            if valid(rules):
                out.append(policies[:i] + [smaller] + policies[i + 1 :])
    return out[:200]


def valid(rules):
    text = json.dumps(rules)
    return bool(rules) and not any(e in text for e in ("[]", '"source": {}', '"operation": {}'))


if __name__ == "__main__":
    unittest.main(verbosity=2)
