"""`countersign probe` against real servers, each set up wrong in one way: it must say what is wrong with it, and
nothing that is not. What is true of each is in setups.py; `servers.py` shows that without our tool.

PROBE_ONLY=kind or PROBE_ONLY=part-of-a-name picks; PROBE_WORKERS says how many probes run at once.
"""

import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import pki  # noqa: E402
from ports import free_port  # noqa: E402
from servers import World  # noqa: E402
from setups import CASES, RESUMED  # noqa: E402

BIN = os.environ.get("COUNTERSIGN_BIN", "countersign")
ONLY = os.environ.get("PROBE_ONLY", "")
WORKERS = int(os.environ.get("PROBE_WORKERS", "8"))
# What every probe of an endpoint that asks for certificates is to have tried.
ALWAYS = ("none", "self-signed", "wrong-ca", "expired", "other-identity", "right")
SERIOUS = ("medium", "high", "critical")


def finding_id(finding):
    """The rule with the way it is broken, whether in one field or in two."""
    rule = finding["rule"]
    return rule if "/" in rule else f"{rule}/{finding.get('pattern', '')}"


def arguments(world, s):
    p = world.pki.path
    out = [BIN, "probe", f"127.0.0.1:{s.port}", "-o", "json", "--protocol", s.protocol, "--server-name", "localhost",
           "--ca-cert", p("client-ca.pem"), "--ca-key", p("client-ca.key"), "--id", pki.ID,
           "--cert", p("right.pem"), "--key", p("right.key"), "--bundle", p("server-root.pem"),
           "--server-id", pki.SERVER_ID, "--timeout", "10"]
    if s.tells_revoked:
        out += ["--revoked-cert", p("revoked.pem"), "--revoked-key", p("revoked.key")]
    if s.also:
        out += ["--also", f"127.0.0.1:{s.also}"]
    return out


def run(world, s):
    begin = time.time()
    done = subprocess.run(arguments(world, s), capture_output=True, text=True, timeout=120)
    return done, time.time() - begin


def differences(s, done):
    """What the answer of the probe says that is not so, and what it does not say that is."""
    if done.returncode not in (0, 10):
        return [f"exit {done.returncode}: {done.stderr[-1000:]}"]
    out = []
    if "PRIVATE KEY" in done.stdout + done.stderr:
        out.append("a private key is shown")
    answer = json.loads(done.stdout)
    if answer["schema"] != "countersign.probe/v1" or answer["target"] != f"127.0.0.1:{s.port}":
        out.append(f"schema {answer['schema']}, target {answer['target']}")
    cases = {c["id"]: c for c in answer["cases"]}
    show = lambda c: f"{c['outcome']}: {c['evidence']}"  # noqa: E731

    def compare(case, accepted, needed):
        if case not in cases:
            if needed:
                out.append(f"{case} was not tried")
            return
        outcome = cases[case]["outcome"]
        if outcome != "accepted" if accepted else outcome not in ("refused", "refused-by-application"):
            out.append(f"{case} should be {'accepted' if accepted else 'refused'}, is {show(cases[case])}")

    for case in CASES:
        if s.auth == "not-asked" and case != "none":
            # Not sent where it is not asked for; what then is reported of it says nothing.
            continue
        if case == "ca-as-leaf" and s.by_name or case == "revoked" and not s.tells_revoked:
            continue
        compare(f"client/{case}", case in s.lets, case in ALWAYS or case == "revoked")
    # Where an expired certificate is taken anyway, a resumed session shows nothing.
    if RESUMED not in s.may and "expired" not in s.lets:
        compare("client/resumed", s.resume, False)
    if s.protocol != "grpc":
        compare("plaintext/same-port", s.plain == "same", True)
    if s.also:
        compare("plaintext/neighbour", s.plain == "neighbour", True)
    for case in ("protocol/tls10", "protocol/tls11"):
        compare(case, s.old, False)

    found = {finding_id(f): f for f in answer["findings"]}
    out += [f"not found: {f}" for f in sorted(s.wrong - set(found))]
    for rule, finding in sorted(found.items()):
        if rule not in s.wrong | s.may:
            out.append(f"found, but is not so: {rule}: {finding['evidence']}")
        out += [f"{rule} has no {field}" for field in ("severity", "title", "evidence", "fix") if not finding[field]]
    serious = any(f["severity"] in SERIOUS for f in found.values())
    if done.returncode != (10 if serious else 0):
        out.append(f"exit {done.returncode} with findings of {[f['severity'] for f in found.values()]}")
    return out


class Probe(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.world = World()

    @classmethod
    def tearDownClass(cls):
        cls.world.stop()

    def kind(self, kind):
        if ONLY and ONLY != kind and not any(ONLY in s.name for s in self.world.setups[kind]):
            self.skipTest("not picked")
        begin = time.time()
        setups = [s for s in self.world.start(kind) if not ONLY or ONLY == kind or ONLY in s.name]
        started = time.time() - begin
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            runs = [(s, pool.submit(run, self.world, s)) for s in setups]
        slowest = (0, "")
        for s, future in runs:
            with self.subTest(s.name):
                done, seconds = future.result()
                slowest = max(slowest, (seconds, s.name))
                if wrong := differences(s, done):
                    self.fail("\n  ".join([s.name, *wrong]))
        self.world.alive(kind)
        print(f"probe: {kind}: {len(runs)} set-ups, started in {started:.1f}s, all in {time.time() - begin:.1f}s, "
              f"slowest {slowest[1]} {slowest[0]:.1f}s", flush=True)

    def test_nginx(self):
        self.kind("nginx")

    def test_haproxy(self):
        self.kind("haproxy")

    def test_apache(self):
        self.kind("apache")

    def test_stunnel(self):
        self.kind("stunnel")

    def test_envoy(self):
        self.kind("envoy")

    def test_node(self):
        self.kind("node")

    def test_java(self):
        self.kind("java")

    def test_go(self):
        self.kind("go")

    def test_python(self):
        self.kind("python")

    def test_postgres(self):
        self.kind("postgres")

    def test_mariadb(self):
        self.kind("mariadb")

    def test_nobody_listens(self):
        s = next(s for s in self.world.setups["python"] if s.what == "strict")
        port, s.port = s.port, free_port()
        try:
            done, _ = run(self.world, s)
        finally:
            s.port = port
        self.assertEqual(done.returncode, 4, done.stderr)

    def test_who_speaks_nothing_but_an_old_version(self):
        port, path = free_port(), self.world.pki.path
        server = subprocess.Popen(
            [self.world.tools["openssl"], "s_server", "-accept", f"127.0.0.1:{port}", "-cert", path("server.pem"),
             "-key", path("server.key"), "-tls1", "-cipher", "ECDHE:@SECLEVEL=0", "-quiet"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(100):
                with socket.socket() as s:
                    if s.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            done = subprocess.run([BIN, "probe", f"127.0.0.1:{port}", "-o", "json", "--server-name", "localhost"],
                                  capture_output=True, text=True, timeout=60)
        finally:
            server.kill()
            server.wait()
        self.assertEqual(done.returncode, 10, done.stderr)
        answer = json.loads(done.stdout)
        self.assertIn("weak-tls/live-old-version", {finding_id(f) for f in answer["findings"]})
        outcomes = {c["id"]: c["outcome"] for c in answer["cases"]}
        self.assertEqual((outcomes["protocol/tls10"], outcomes["protocol/tls"]), ("accepted", "refused"))

    def test_who_never_answers_is_not_waited_for_forever(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            done = subprocess.run([BIN, "probe", f"127.0.0.1:{port}", "-o", "json", "--timeout", "1"],
                                  capture_output=True, text=True, timeout=60)
        self.assertNotEqual(done.returncode, 10, done.stdout)
        if done.returncode == 0:
            self.assertFalse([c for c in json.loads(done.stdout)["cases"] if c["outcome"] == "accepted"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
