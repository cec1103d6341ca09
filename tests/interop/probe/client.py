"""What a plain client sees of each set-up, with Python's ssl, grpcio and openssl: the proof of `setups.py`."""

import concurrent.futures
import os
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
import unittest

from cryptography import x509

import pki
from setups import CASES

TIMEOUT = 10
ACCEPTED, REFUSED, BY_APPLICATION = "accepted", "refused", "refused-by-application"
REQUEST = "GET / HTTP/1.1\r\nHost: localhost\r\n{}Connection: close\r\n\r\n"
BOTH_LENGTHS = ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
                "Connection: close\r\n\r\n0\r\n\r\n")
# What each header is believed to say of a caller with another identity.
CLAIMS = {"X-Forwarded-Client-Cert": f"URI={pki.ID}", "X-SSL-Client-S-DN": "CN=web", "X-Forwarded-User": "web"}
# No secrecy, RC4 or 3DES; CBC with SHA-1 is old, but not counted here.
WEAK = [0x0001, 0x0002, 0x0004, 0x0005, 0x000A, 0x003B, 0xC006, 0xC007, 0xC008, 0xC010, 0xC011, 0xC012]


def context(world, case):
    out = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    out.check_hostname = False
    # countersign:allow client-verify-disabled reason=the server's certificates are wrong on purpose and looked at apart
    out.verify_mode = ssl.CERT_NONE
    if case != "none":
        out.load_cert_chain(world.pki.path(f"{case}.pem"), world.pki.path(f"{case}.key"))
    return out


def receive(stream, enough=lambda data: False):
    data = b""
    while not enough(data):
        more = stream.recv(65536)
        if not more:
            break
        data += more
    return data


def whole(data):
    """Whether an answer of HTTP has come to its end: not every server closes soon after."""
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return bool(length) and b"\r\n\r\n" in data and len(body) >= int(length[1])


def before_tls(s, raw):
    """Up to where TLS begins."""
    if s.protocol == "postgres":
        raw.sendall(struct.pack("!II", 8, 80877103))
        if raw.recv(1) != b"S":
            raise ConnectionError("no TLS")
    elif s.protocol == "mysql":
        packet(raw)
        raw.sendall(b"\x20\0\0\1" + (0x88A00).to_bytes(4, "little") + b"\0\0\0\1\x21" + bytes(23))
    elif s.protocol == "smtp":
        reply = lambda: receive(raw, lambda d: re.search(rb"^\d{3} .*\r\n", d, re.MULTILINE))  # noqa: E731
        reply()
        raw.sendall(b"EHLO c.test\r\n")
        reply()
        raw.sendall(b"STARTTLS\r\n")
        if not reply().startswith(b"220"):
            raise ConnectionError("no TLS")


def packet(stream):
    """One of MySQL's; empty if the other end has closed."""
    head = receive(stream, lambda d: len(d) >= 4)
    if len(head) < 4:
        return b""
    length = int.from_bytes(head[:3], "little")
    return head[4:] + (receive(stream, lambda d: len(head) - 4 + len(d) >= length) if len(head) - 4 < length else b"")


def startup(user="web"):
    body = struct.pack("!I", 196608) + f"user\0{user}\0database\0postgres\0\0".encode()
    return struct.pack("!I", len(body) + 4) + body


def ask(s, stream, headers="", request=None, greet=False):
    """Sends what wants an answer and judges the answer; the text too."""
    if s.protocol == "http":
        stream.sendall((request or REQUEST.format(headers)).encode())
        answer = receive(stream, whole).decode("latin-1")
        if not answer.startswith("HTTP/1."):
            return (BY_APPLICATION if answer else REFUSED), answer
        return (ACCEPTED if answer.split()[1].startswith("2") else BY_APPLICATION), answer
    if s.protocol == "postgres":
        stream.sendall(startup())
        answer = receive(stream, lambda d: len(d) > 8)
        good = answer[:1] == b"R" and answer[5:9] == b"\0\0\0\0"
        return (ACCEPTED if good else BY_APPLICATION if answer else REFUSED), answer.decode("latin-1")
    if s.protocol == "mysql":
        number = 1 if greet else 2
        if greet:
            packet(stream)
        login = (0x88200).to_bytes(4, "little") + b"\0\0\0\1\x21" + bytes(23) + b"web\0\0mysql_native_password\0"
        stream.sendall(len(login).to_bytes(3, "little") + bytes([number]) + login)
        answer = packet(stream)
        good = answer[:1] == b"\0"
        return (ACCEPTED if good else BY_APPLICATION if answer else REFUSED), answer.decode("latin-1")
    if s.protocol == "smtp":
        line = lambda: receive(stream, lambda d: re.search(rb"^\d{3} .*\r\n", d, re.MULTILINE))  # noqa: E731
        if greet:
            line()
        stream.sendall(b"EHLO c.test\r\n")
        if not line():
            return REFUSED, ""
        stream.sendall(b"MAIL FROM:<a@corp.test>\r\n")
        answer = line().decode()
        return (ACCEPTED if answer.startswith("250") else BY_APPLICATION if answer else REFUSED), answer
    stream.sendall(b"hello\n")
    answer = receive(stream, lambda d: d.endswith(b"\n")).decode()
    return (ACCEPTED if answer.startswith("ok") else REFUSED), answer


def grpc(world, s, case):
    os.environ["GRPC_VERBOSITY"] = "NONE"
    import grpc as g
    read = lambda name: open(world.pki.path(name), "rb").read()  # noqa: E731
    mine = {} if case == "none" else {"private_key": read(f"{case}.key"), "certificate_chain": read(f"{case}.pem")}
    credentials = g.ssl_channel_credentials(root_certificates=read("server-root.pem"), **mine)
    options = [("grpc.ssl_target_name_override", "localhost")]
    with g.secure_channel(f"127.0.0.1:{s.port}", credentials, options) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=bytes,
                                   response_deserializer=bytes)
        try:
            call(b"", timeout=TIMEOUT)
            return ACCEPTED, "ok"
        except g.RpcError as e:
            code = e.code()
            return (REFUSED if code == g.StatusCode.UNAVAILABLE else BY_APPLICATION), f"{code} {e.details()}"


def attempt(world, s, case, headers="", request=None):
    if s.protocol == "grpc":
        return grpc(world, s, case)
    try:
        with socket.create_connection(("127.0.0.1", s.port), TIMEOUT) as raw:
            before_tls(s, raw)
            with context(world, case).wrap_socket(raw, server_hostname="localhost") as stream:
                return ask(s, stream, headers, request)
    except TimeoutError:
        return "unclear", "timeout"
    except OSError as e:
        return REFUSED, repr(e)


def plaintext(s, port):
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as raw:
            return ask(s, raw, greet=True)
    except OSError as e:
        return REFUSED, repr(e)


def resumed(world, s, name, end):
    """A session begun with a certificate that was valid then, and taken up when it is no longer."""
    def once(mine, session):
        with socket.create_connection(("127.0.0.1", s.port), TIMEOUT) as raw:
            with mine.wrap_socket(raw, server_hostname="localhost", session=session) as stream:
                answer, text = ask(s, stream)
                return answer, text, stream.session, stream.session_reused

    begun, out = [], []
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        mine = context(world, name)
        mine.maximum_version = version
        answer, text, session, _ = once(mine, None)
        if answer != ACCEPTED:
            return f"not accepted while valid: {answer} {text}"
        begun.append((mine, session))
    time.sleep(max(0, end + 1.5 - time.time()))
    for mine, session in begun:
        try:
            answer, _, _, reused = once(mine, session)
            out.append((answer, reused))
        except OSError as e:
            out.append((f"{REFUSED} {e!r}", False))
    return out


def hello(s, version, suites):
    """What the server chooses from these suites in this version, or None: a ClientHello by hand, since the TLS
    libraries of today no longer offer what is asked here."""
    body = struct.pack("!H", version) + os.urandom(32) + b"\0"
    body += struct.pack("!H", 2 * len(suites)) + b"".join(struct.pack("!H", x) for x in suites) + b"\1\0"
    name = b"localhost"
    ext = lambda kind, data: struct.pack("!HH", kind, len(data)) + data  # noqa: E731
    extensions = ext(0, struct.pack("!HBH", len(name) + 3, 0, len(name)) + name)
    extensions += ext(10, struct.pack("!HHH", 4, 29, 23)) + ext(11, b"\1\0")
    if version >= 0x0303:
        extensions += ext(13, struct.pack("!HHHHH", 8, 0x0403, 0x0804, 0x0401, 0x0203))
    body += struct.pack("!H", len(extensions)) + extensions
    message = b"\1" + struct.pack("!I", len(body))[1:] + body
    try:
        with socket.create_connection(("127.0.0.1", s.port), TIMEOUT) as raw:
            before_tls(s, raw)
            raw.sendall(b"\x16\x03\x01" + struct.pack("!H", len(message)) + message)
            answer = receive(raw, lambda d: len(d) >= 80)
    except OSError:
        return None
    if len(answer) < 80 or answer[0] != 0x16 or answer[5] != 2:
        return None
    after = 44 + answer[43]
    return struct.unpack("!H", answer[9:11])[0], struct.unpack("!H", answer[after:after + 2])[0]


def s_client(world, s):
    """Whether a certificate is asked for, and the chain that is sent."""
    start = ["-starttls", s.protocol] if s.protocol in ("postgres", "smtp", "mysql") else []
    out = subprocess.run(
        [world.tools["openssl"], "s_client", "-connect", f"127.0.0.1:{s.port}", "-servername", "localhost",
         "-showcerts", "-msg", *start], input=b"", capture_output=True, timeout=30).stdout
    return b"CertificateRequest" in out, x509.load_pem_x509_certificates(out) if b"BEGIN CERT" in out else []


def server_problem(chain):
    """The one problem that the certificate of a set-up has, as the name of its file says it."""
    leaf = chain[0]
    extension = lambda kind: next((e.value for e in leaf.extensions if isinstance(e.value, kind)), None)  # noqa: E731
    names = extension(x509.SubjectAlternativeName)
    if len(chain) == 1:
        return "server-incomplete"
    if extension(x509.BasicConstraints).ca:
        return "server-ca-leaf"
    if leaf.not_valid_after_utc < pki.NOW:
        return "server-expired"
    if leaf.not_valid_after_utc > pki.NOW + 90 * pki.DAY:
        return "server-long"
    if names is None:
        return "server-no-san"
    return "server-two-uris" if len(names.get_values_for_type(x509.UniformResourceIdentifier)) > 1 else "server"


def check(world, s, say):
    """All that is claimed of one set-up; says what is not so."""
    def expect(what, wanted, got, text=""):
        if wanted != got:
            say(f"{s.name}: {what}: should be {wanted}, is {got}  {text[:300]!r}")

    for case in CASES:
        got, text = attempt(world, s, case)
        expect(f"client/{case}", case in s.lets, got == ACCEPTED, f"{got} {text}")
    asked, chain = s_client(world, s)
    expect("asked", s.auth != "not-asked", asked)
    expect("certificate", s.cert, server_problem(chain) if chain else None)
    if s.protocol != "grpc":
        got, text = plaintext(s, s.port)
        expect("plaintext/same-port", s.plain == "same", got == ACCEPTED, text)
    if s.also:
        got, text = plaintext(s, s.also)
        expect("plaintext/neighbour", s.plain == "neighbour", got == ACCEPTED, text)
    good = [0xC02B, 0xC02C, 0xC009, 0xC00A, 0xC02F]
    for version in (0x0301, 0x0302):
        expect(f"version {version:#x}", s.old, (hello(s, version, good) or (0,))[0] == version)
    if not s.old:
        expect("weak cipher", s.weak, hello(s, 0x0303, WEAK) is not None)
    if s.protocol == "http":
        got, text = attempt(world, s, "right", request=BOTH_LENGTHS)
        expect("framing", "request-smuggling/live-ambiguous-framing" in s.wrong, got == ACCEPTED, text)
        marker = "".join(f"{name}: {value};marker-7f\r\n" for name, value in CLAIMS.items())
        got, text = attempt(world, s, "right", marker)
        expect("reflected", s.headers == "reflected", "marker-7f" in text, text)
        if "right" in s.lets and "other-identity" not in s.lets:
            for name, value in CLAIMS.items():
                got, text = attempt(world, s, "other-identity", f"{name}: {value}\r\n")
                expect(f"believed {name}", s.headers == "believed", got == ACCEPTED, text)


def check_resumed(world, s, name, end, say):
    got = resumed(world, s, name, end)
    taken = isinstance(got, list) and any(answer == ACCEPTED and reused for answer, reused in got)
    full = isinstance(got, str) or any(answer == ACCEPTED and not reused for answer, reused in got)
    if taken != s.resume or full:
        say(f"{s.name}: resumed: should be {s.resume}, is {taken}: {got}")


def main(world, kinds):
    begin = time.time()
    wrong, skipped, lock = [], [], threading.Lock()

    def say(text):
        with lock:
            wrong.append(text)
            print(text, flush=True)

    try:
        setups = []
        for kind in kinds or world.setups:
            try:
                world.launch(kind)
            except unittest.SkipTest as e:
                print(e)
                skipped.append(kind)
        for kind in world.running:
            setups += world.start(kind)
        print(f"started {len(setups)} set-ups after {time.time() - begin:.1f}s", flush=True)
        again = [s for s in setups if s.protocol == "http" and not s.headers
                 and s.auth in ("strict", "spiffe") and s.what in ("strict", "spiffe", "resumed")]
        end = world.pki.short_lived("short-lived", 6)
        with concurrent.futures.ThreadPoolExecutor(max(1, len(again))) as pool:
            late = {s.name + ": resumed": pool.submit(check_resumed, world, s, "short-lived", end, say)
                    for s in again}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            done = {s.name: pool.submit(check, world, s, say) for s in setups}
        for name, future in {**late, **done}.items():
            if future.exception():
                say(f"{name}: {future.exception()!r}")
        for kind in {s.kind for s in setups}:
            world.alive(kind)
    finally:
        world.stop()
    print(f"{len(setups)} set-ups, {len(wrong)} not as said, {skipped} skipped, {time.time() - begin:.1f}s")
    return 1 if wrong else 0
