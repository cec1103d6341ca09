"""`countersign probe --listen` against real clients, each right or wrong in one way: it must say which servers each
believes, no more and no less. `test_truth_*` show the same without our tool: by the client's exit code, against
Python's ssl with certificates of our own making.

PROBE_ONLY=part-of-a-name picks; PROBE_WORKERS says how many run at once.
"""

import concurrent.futures
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import install  # noqa: E402
import pki  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: E402

BIN = os.path.abspath(os.environ.get("COUNTERSIGN_BIN") or shutil.which("countersign") or "countersign")
ONLY = os.environ.get("PROBE_ONLY", "")
WORKERS = int(os.environ.get("PROBE_WORKERS", "6"))
APPS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "apps", "clients")
SERIOUS = ("medium", "high", "critical")
# A name that no client dials and no certificate for another carries.
WRONG_NAME = "wrong.corp.test"

KNOCK = 'import os, socket; socket.create_connection(os.environ["COUNTERSIGN_PROBE_ADDR"].rsplit(":", 1)).close()'

COMMON = ("right", "self-signed", "wrong-ca", "expired", "not-yet-valid", "ca-as-leaf", "wrong-usage")
FINDINGS = {
    **{case: f"client-verify-disabled/live-{case}" for case in COMMON[1:]},
    **{case: f"hostname-verify-disabled/live-{case}" for case in ("wrong-name", "wrong-id")},
}
ALL = frozenset({*COMMON, "wrong-name", "wrong-id"})
RIGHT = frozenset({"right"})
# Web PKI has no rule against a leaf with CA:TRUE, and neither OpenSSL nor Go nor Java knows one.
WEB = RIGHT | {"ca-as-leaf"}
# The chain is judged and the name is not.
ANY_NAME = WEB | {"wrong-name", "wrong-id"}


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclasses.dataclass(frozen=True)
class Client:
    """`command`: {name} of a file or a program, $PORT and $ADDR of the probe; `believes`: the servers that it takes."""

    kind: str
    what: str
    command: str
    believes: frozenset
    server: str = "localhost"
    id: bool = False
    presents: bool = False
    # The CA that issues is not the one that the client trusts, but below it.
    intermediate: bool = False
    # Its exit code says whether it was content with the certificate.
    tells: bool = True

    @property
    def name(self):
        return f"{self.kind}-{self.what}"

    @property
    def cases(self):
        return (*COMMON, "wrong-id" if self.id else "wrong-name")

    @property
    def lets(self):
        return self.believes & set(self.cases)


def curl(what, arguments, believes, server="localhost", before="", **more):
    url = f"https://{server}:$PORT/"
    return Client("curl", what, f"{before}exec {{curl}} -s -m 10 {arguments} {url}", believes, server, **more)


def look(what, arguments, believes):
    """A health check that looks for something in the answer."""
    command = f"{{curl}} -s -m 10 {arguments} https://localhost:$PORT/ | grep -q healthy"
    return Client("curl", what, command, believes, tells=False)


def s_client(what, arguments, believes, request=True, **more):
    # It ends with its input, unless told to wait for the end of the connection.
    feed = "printf 'GET / HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' |" if request else ""
    wait = "-ign_eof" if request else "</dev/null"
    command = f"{feed} {{openssl}} s_client -connect $ADDR -servername localhost -CAfile {{ca}} {arguments} {wait}"
    return Client("openssl", what, command, believes, **more)


def clients():
    trust = "--cacert {ca}"
    shop = "shop.corp.test"
    resolve = f"--resolve {shop}:$PORT:127.0.0.1"
    out = [
        curl("right", trust, WEB),
        curl("right-http1", f"{trust} --http1.1", WEB),
        curl("right-tls12", f"{trust} --tls-max 1.2", WEB),
        curl("right-other-name", f"{trust} {resolve}", WEB, shop),
        curl("right-address", trust, WEB, "127.0.0.1"),
        curl("right-intermediate", trust, WEB, intermediate=True),
        curl("right-own-certificate", f"{trust} --cert {{client.pem}} --key {{client.key}}", WEB, presents=True),
        curl("right-tries-twice", trust, WEB, before="{curl} -s -m 10 --cacert {ca} https://localhost:$PORT/ || "),
        curl("insecure", "-k", ALL),
        curl("insecure-http1", "-k --http1.1", ALL),
        curl("insecure-tls12", "-k --tls-max 1.2", ALL),
        curl("insecure-other-name", f"-k {resolve}", ALL, shop),
        # The exit code is that of something else, and the same for every certificate.
        look("right-wants-another-answer", f"{trust} --http1.1", WEB),
        look("insecure-wants-another-answer", "-k --http1.1", ALL),
        # Two connections, of which the second must not be taken for that of the next certificate.
        curl("insecure-twice", "-k --http1.1", ALL, before="{curl} -s -m 10 -k --http1.1 https://localhost:$PORT/; "),
        # Looks whether somebody listens, and goes on with another connection.
        curl("insecure-knocks-first", "-k --http1.1", ALL, before=f"{{python}} -c '{KNOCK}'; "),
        # Verifies, and when that fails does without.
        curl("insecure-on-second-try", "-k", ALL, before="{curl} -s -m 10 --cacert {ca} https://localhost:$PORT/ || "),

        s_client("right", "-verify_return_error -verify_hostname localhost", WEB),
        s_client("right-tls12", "-tls1_2 -verify_return_error -verify_hostname localhost", WEB),
        s_client("any-name", "-verify_return_error", ANY_NAME),
        s_client("believes-all", "", ALL),
        # Shakes hands and goes, content: a health check.
        s_client("right-says-nothing", "-verify_return_error -verify_hostname localhost", WEB, request=False),
        s_client("believes-all-says-nothing", "", ALL, request=False),
    ]

    def programs(kind, start, modes):
        for mode, believes in modes.items():
            spiffe = mode.startswith("spiffe")
            more = " {id}" if spiffe else ""
            out.append(Client(kind, mode, f"exec {start} {mode} {{ca}} localhost{more}", believes, id=spiffe))

    programs("python", "{python} {apps}/client.py", {
        "right": WEB, "strict": WEB, "waits": WEB, "name-later": WEB,
        "no-hostname": ANY_NAME, "cert-none": ALL, "cert-none-waits": ALL})
    programs("go", "{goclient}", {
        "right": WEB, "right-http2": WEB, "skip": ALL, "skip-http2": ALL, "chain-only": ANY_NAME, "spiffe": RIGHT,
        "spiffe-any-usage": RIGHT | {"wrong-usage"}, "spiffe-any-id": RIGHT | {"wrong-id"}})
    programs("node", "{node} {apps}/client.js", {"right": WEB, "reject-nothing": ALL, "any-name": ANY_NAME})
    programs("java", "{java} -Xmx64m -XX:TieredStopAtLevel=1 -cp {classes} Client", {
        "right": WEB, "raw": ANY_NAME, "trust-all": ALL})
    proxy = "exec {python} {apps}/outbound.py {countersign} {directory} {id}"
    out.append(Client("countersign", "outbound", proxy, RIGHT, id=True, presents=True))
    return [c for c in out if not ONLY or ONLY in c.name]


class World:
    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="countersign-clients-")
        self.pool = concurrent.futures.ThreadPoolExecutor(WORKERS)
        self.tools = {tool: shutil.which(tool) for tool in ("curl", "openssl", "go", "node", "java", "javac")}
        self.tools |= {"python": sys.executable, "countersign": BIN if os.access(BIN, os.X_OK) else None}
        self.make_certificates()

    def make_certificates(self):
        long = {"start": pki.NOW - pki.DAY, "end": pki.NOW + 30 * pki.DAY}
        root = pki.issue("root", ca=True, **long)
        below = pki.issue("below", root, ca=True, **long)
        impostor = pki.issue("root", ca=True, **long)
        self.write("ca", root)
        self.write("below", below, root)
        self.write("stranger", impostor)
        self.write("client", pki.issue("web", root, uris=[pki.ID]))
        # Those of the servers that show the truth; those of the probe it makes for itself.
        for name in ("localhost", "shop.corp.test"):
            for case in (*COMMON, "wrong-name", "wrong-id"):
                more = {"uris": [pki.OTHER_ID if case == "wrong-id" else pki.SERVER_ID],
                        "dns": [WRONG_NAME if case == "wrong-name" else name]}
                if case == "expired":
                    more |= {"start": pki.NOW - 2 * pki.HOUR, "end": pki.NOW - pki.HOUR}
                if case == "not-yet-valid":
                    more |= {"start": pki.NOW + pki.HOUR, "end": pki.NOW + 2 * pki.HOUR}
                if case == "wrong-usage":
                    more["usages"] = [ExtendedKeyUsageOID.CODE_SIGNING]
                issuer = {"self-signed": None, "wrong-ca": impostor}.get(case, root)
                self.write(f"{name}-{case}", pki.issue(name, issuer, ca=case == "ca-as-leaf", **more), root)

    def path(self, name):
        return f"{self.directory}/{name}"

    write = pki.Pki.write
    put = pki.Pki.put

    def prepare(self, kind):
        """What must be built; the first who asks builds it."""
        if kind == "go" and self.tools["go"]:
            self.tools["goclient"] = self.path("goclient")
            self.built([self.tools["go"], "build", "-buildvcs=false", "-o", self.tools["goclient"], "."], f"{APPS}/go")
        if kind == "java" and self.tools["javac"]:
            self.tools["classes"] = self.path("classes")
            self.built([self.tools["javac"], "-d", self.tools["classes"], f"{APPS}/Client.java"], APPS)

    def built(self, command, directory):
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise AssertionError(f"{command}: {done.stderr[-2000:]}")

    def need(self, kind):
        wanted = {"java": ["java", "javac"]}.get(kind, [kind])
        missing = [tool for tool in wanted if not self.tools.get(tool)]
        if missing and os.environ.get("CI") == "true":
            raise AssertionError(f"{missing} is missing")
        if missing:
            print(f"SKIPPED: {missing} is missing", flush=True)
            raise unittest.SkipTest(f"SKIPPED: {missing} is missing")

    def command(self, c):
        names = {**self.tools, "apps": APPS, "directory": self.directory, "ca": self.path("ca.pem"),
                 "id": pki.SERVER_ID, "client.pem": self.path("client.pem"), "client.key": self.path("client.key")}
        told = re.sub(r"\{([a-z.]+)\}", lambda m: str(names[m[1]]), c.command)
        return ["sh", "-c", f"ADDR=$COUNTERSIGN_PROBE_ADDR PORT=${{COUNTERSIGN_PROBE_ADDR##*:}}; {told}"]

    def close(self):
        self.pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self.directory, ignore_errors=True)


def run(command, timeout, **more):
    """Like subprocess.run, but nothing outlives it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True, **more)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise AssertionError(f"not done after {timeout} s: {command}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def probe(world, c, timeout="5", **more):
    authority = "below" if c.intermediate else "ca"
    command = [BIN, "probe", "--listen", "127.0.0.1:0", "-o", "json", "--timeout", timeout, "--server-name", c.server,
               "--ca-cert", world.path(f"{authority}.pem"), "--ca-key", world.path(f"{authority}.key")]
    if c.id:
        command += ["--id", pki.SERVER_ID]
    return run([*command, "--", *world.command(c)], 80, **more)


def differences(c, done):
    """What the answer of the probe says that is not so, and what it does not say that is."""
    if done.returncode not in (0, 10):
        return [f"exit {done.returncode}: {done.stderr[-1000:]}"]
    out = []
    if "PRIVATE KEY" in done.stdout + done.stderr:
        out.append("a private key is shown")
    answer = json.loads(done.stdout)
    if answer["schema"] != "countersign.probe/v1" or not re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", answer["target"]):
        out.append(f"schema {answer['schema']}, target {answer['target']}")
    cases = {case["id"]: case for case in answer["cases"]}
    wanted = {f"server/{case}": "accepted" if case in c.lets else "refused" for case in c.cases}
    wanted["client/certificate"] = "accepted" if c.presents else "refused"
    if len(cases) != len(answer["cases"]) or set(cases) != set(wanted):
        out.append(f"tried {sorted(case['id'] for case in answer['cases'])}")
    for case, outcome in wanted.items():
        if case in cases and cases[case]["outcome"] != outcome:
            out.append(f"{case} should be {outcome}, is {cases[case]['outcome']}: {cases[case]['evidence']}")
    found = {finding["rule"]: finding for finding in answer["findings"]}
    wrong = {FINDINGS[case] for case in c.lets - RIGHT}
    if len(found) != len(answer["findings"]):
        out.append("a finding is there twice")
    out += [f"not found: {rule}" for rule in sorted(wrong - set(found))]
    for rule, finding in sorted(found.items()):
        if rule not in wrong:
            out.append(f"found, but is not so: {rule}: {finding['evidence']}")
        out += [f"{rule} has no {field}" for field in ("severity", "title", "evidence", "fix") if not finding[field]]
    serious = any(f["severity"] in SERIOUS for f in found.values())
    if done.returncode != (10 if serious else 0):
        out.append(f"exit {done.returncode} with findings of {[f['severity'] for f in found.values()]}")
    return out


def serve(listener, context, ended):
    """Answers whoever goes on talking, one at a time: the clients of the truth come so."""
    listener.settimeout(0.1)
    while not ended.is_set():
        try:
            raw, _ = listener.accept()
        except TimeoutError:
            continue
        raw.settimeout(5)
        try:
            with raw, context.wrap_socket(raw, server_side=True) as stream:
                if b"\r\n\r\n" in stream.recv(65536):
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    # Without it s_client says that it was cut off.
                    stream.unwrap()
        except OSError:
            pass


def content(world, c, case):
    """Whether the client says that it is, with its exit code, after talking to a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(world.path(f"{c.server}-{case}.pem"), world.path(f"{c.server}-{case}.key"))
    # countersign:allow server-client-auth-optional reason=it is the client who judges here
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(world.path("ca.pem"))
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener, context, ended), daemon=True)
        thread.start()
        try:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            done = run(world.command(c), 30, env={**os.environ, "COUNTERSIGN_PROBE_ADDR": address})
        finally:
            ended.set()
            thread.join()
    return done.returncode == 0


def truth(world, c):
    # `pki` makes certificates for names only.
    if c.server == "127.0.0.1" or not c.tells:
        return []
    out = []
    for case in c.cases:
        if content(world, c, case) != (case in c.lets):
            out.append(f"is {'not ' * (case in c.lets)}believed, against what is said of it: {case}")
    return out


class Clients(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.begin = time.time()
        cls.world = World()
        cls.addClassCleanup(cls.world.close)
        cls.broken, cls.probes, cls.truths = {}, {}, {}
        everyone = clients()
        # Whoever is built comes first, so that nobody waits for it at the end.
        for kind in sorted({c.kind for c in everyone}, key=lambda kind: kind not in ("go", "java")):
            try:
                cls.world.prepare(kind)
            except AssertionError as e:
                cls.broken[kind] = str(e)
                continue
            if kind == "countersign" or cls.world.tools.get(kind):
                for c in (c for c in everyone if c.kind == kind):
                    cls.probes[c] = cls.world.pool.submit(probe, cls.world, c)
                    cls.truths[c] = cls.world.pool.submit(truth, cls.world, c)

    def kind(self, kind, futures, judge):
        self.world.need(kind)
        if kind in self.broken:
            self.fail(self.broken[kind])
        mine = {c: future for c, future in futures.items() if c.kind == kind}
        if not mine:
            self.skipTest("not picked")
        for c, future in mine.items():
            with self.subTest(c.name):
                if wrong := judge(c, future.result()):
                    self.fail("\n  ".join([c.name, *wrong]))
        print(f"clients: {kind}: {len(mine)} set-ups, at {time.time() - self.begin:.1f}s", flush=True)

    def probe(self, kind):
        self.kind(kind, self.probes, differences)

    def truth(self, kind):
        self.kind(kind, self.truths, lambda c, wrong: wrong)


for kind_ in ("curl", "openssl", "python", "go", "node", "java", "countersign"):
    setattr(Clients, f"test_{kind_}", lambda self, kind=kind_: self.probe(kind))
    setattr(Clients, f"test_truth_{kind_}", lambda self, kind=kind_: self.truth(kind))


class Outside(unittest.TestCase):
    """Clients about which nothing can be said, and those that do not end."""

    @classmethod
    def setUpClass(cls):
        cls.world = World()
        cls.addClassCleanup(cls.world.close)
        stranger, mark = cls.world.path("stranger.pem"), cls.world.path("pids")
        cls.commands = {
            "stranger": f"exec {{curl}} -s -m 10 --cacert {stranger} https://localhost:$PORT/",
            "absent": "exit 3",
            "endless": "{python} {apps}/client.py right {ca} localhost; "
                       f"sleep 300 & echo $! $$ >> {mark}; wait",
        }
        cls.runs = {name: cls.world.pool.submit(cls.look, name) for name in cls.commands}

    @classmethod
    def look(cls, name):
        begin = time.time()
        done = probe(cls.world, Client("sh", name, cls.commands[name], RIGHT), "10" if name == "absent" else "5")
        return done, time.time() - begin

    def test_who_refuses_what_is_right_gets_no_report(self):
        self.world.need("curl")
        done, _ = self.runs["stranger"].result()
        self.assertNotIn(done.returncode, (0, 10), done.stdout)
        self.assertIn("--ca-cert", done.stderr)

    def test_who_never_connects_is_not_said_to_refuse(self):
        done, _ = self.runs["absent"].result()
        self.assertNotIn(done.returncode, (0, 10), done.stdout)
        self.assertNotIn("refuses", done.stderr)

    def test_who_has_ended_without_connecting_is_not_waited_for(self):
        _, seconds = self.runs["absent"].result()
        self.assertLess(seconds, 5)

    def test_by_hand(self):
        """Without a command it says where it listens and when to connect, and waits."""
        path, connected = self.world.path, 0
        process = subprocess.Popen(
            [BIN, "probe", "--listen", "127.0.0.1:0", "--ca-cert", path("ca.pem"), "--ca-key", path("ca.key")],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            address = re.search(r"127\.0\.0\.1:\d+", process.stderr.readline())[0]
            command = [sys.executable, f"{APPS}/client.py", "cert-none", path("ca.pem"), "localhost"]
            for line in process.stderr:
                if "connect now" in line:
                    done = run(command, 20, env={**os.environ, "COUNTERSIGN_PROBE_ADDR": address})
                    self.assertEqual(done.returncode, 0, done.stderr)
                    connected += 1
            told = process.stdout.read()
            self.assertEqual(process.wait(), 10, told)
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()
        self.assertEqual(connected, len(COMMON) + 1)
        for finding in sorted({FINDINGS[case] for case in (*COMMON[1:], "wrong-name")}):
            self.assertIn(finding, told)

    def test_a_command_that_does_not_exist(self):
        command = [BIN, "probe", "--listen", "127.0.0.1:0", "--ca-cert", self.world.path("ca.pem"), "--ca-key",
                   self.world.path("ca.key"), "--", "/nonexistent/client"]
        done = run(command, 20)
        self.assertNotIn(done.returncode, (0, 10), done.stdout)
        self.assertIn("/nonexistent/client", done.stderr)

    def test_who_does_not_end_is_ended_with_what_it_started(self):
        done, seconds = self.runs["endless"].result()
        left = set()
        for pid in open(self.world.path("pids")).read().split():
            # What has ended and was not yet collected by whoever inherited it is still listed, as a zombie.
            if runs(pid):
                left.add(pid)
                os.kill(int(pid), signal.SIGKILL)
        self.assertIn(done.returncode, (0, 10), done.stderr)
        self.assertLess(seconds, 45)
        self.assertEqual(left, set(), "processes of the client are left running")


if __name__ == "__main__":
    unittest.main(verbosity=2)
