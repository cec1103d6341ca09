"""One process with many listeners, each set up as its record says: `pyserver.py CONFIG.json`. Python's ssl with
HTTP, SMTP (STARTTLS) or lines of text on it."""

import json
import os
import socket
import ssl
import sys
import threading
import time

from cryptography import x509

NO_CHECK_TIME = 0x200000


def context(s):
    out = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    out.minimum_version = ssl.TLSVersion.TLSv1 if s["old"] else ssl.TLSVersion.TLSv1_2
    if s["old"]:
        out.set_ciphers("ALL:@SECLEVEL=0")
    if s["weak"]:
        out.set_ciphers("ECDHE+AESGCM:ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0")
    out.load_cert_chain(f"{s['dir']}/{s['cert']}.pem", f"{s['dir']}/{s['cert']}.key")
    if s["auth"] == "not-asked":
        return out
    out.verify_mode = ssl.CERT_OPTIONAL if s["auth"] == "optional" else ssl.CERT_REQUIRED
    out.load_verify_locations(f"{s['dir']}/client-ca.pem")
    if s["crl"]:
        out.load_verify_locations(f"{s['dir']}/crl.pem")
        out.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    if s["auth"] == "expired-ok":
        out.verify_flags |= NO_CHECK_TIME
    return out


def identity(s, stream):
    """The peer's URI, or why it is not judged right. What the session remembers is judged like what is new."""
    der = stream.getpeercert(True)
    if not der:
        return ""
    cert = x509.load_der_x509_certificate(der)
    uris = []
    for extension in cert.extensions:
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca and s["auth"] == "strict":
            return ""
        if isinstance(extension.value, x509.SubjectAlternativeName):
            uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    if not s["resume"] and s["auth"] != "expired-ok" and cert.not_valid_after_utc.timestamp() < time.time():
        return ""
    return uris[0] if len(uris) == 1 else ""


def allowed(s, stream):
    if s["auth"] in ("not-asked", "optional"):
        return True
    who = identity(s, stream)
    return bool(who) if s["auth"] == "any-identity" else who == s["id"]


def believes(headers):
    """As an application does that takes whatever a proxy might have set."""
    told = [headers[n] for n in ("x-forwarded-client-cert", "x-ssl-client-s-dn", "x-forwarded-user") if n in headers]
    return any("web" in value for value in told)


def linger(stream):
    """A close with unread data is a reset, which can overtake the alert."""
    try:
        with socket.socket(fileno=os.dup(stream.fileno())) as raw:
            raw.settimeout(1)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(4096):
                pass
    except OSError:
        pass


def http(s, stream, tls=True):
    data = b""
    while b"\r\n\r\n" not in data:
        more = stream.recv(65536)
        if not more or len(data) > 65536:
            return
        data += more
    lines = data.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        name = name.strip().lower()
        if name == "content-length" and name in headers:
            headers["transfer-encoding"] = "two lengths are as bad"
        headers[name] = value.strip()
    status, body = "200 OK", "hello\n"
    if "content-length" in headers and "transfer-encoding" in headers and not s["framing"]:
        status = "400 Bad Request"
    elif tls and s["headers"] == "believed":
        if not (believes(headers) or identity(s, stream) == s["id"]):
            status = "403 Forbidden"
    elif tls and not allowed(s, stream):
        status = "403 Forbidden"
    elif s["headers"] == "reflected":
        body = json.dumps(headers)
    body = body if status.startswith("200") else status
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    stream.sendall((head + body).encode())


def lines(s, stream, tls=True):
    line = stream.recv(4096)
    if line and (not tls or allowed(s, stream)):
        stream.sendall(b"ok " + line)


def smtp(s, stream, tls_context):
    stream.sendall(b"220 api ESMTP\r\n")
    secure = False
    reader = stream.makefile("rb", buffering=0)
    while line := reader.readline(1024):
        verb = line.decode("latin-1").strip().upper()
        if verb.startswith("EHLO"):
            stream.sendall(b"250-api\r\n" + (b"" if secure else b"250-STARTTLS\r\n") + b"250 8BITMIME\r\n")
        elif verb == "STARTTLS" and not secure:
            stream.sendall(b"220 go ahead\r\n")
            stream = tls_context.wrap_socket(stream, server_side=True)
            reader, secure = stream.makefile("rb", buffering=0), True
        elif verb == "QUIT":
            stream.sendall(b"221 bye\r\n")
            return
        elif verb in ("NOOP", "RSET") or verb.startswith("HELO"):
            stream.sendall(b"250 ok\r\n")
        elif not secure and s["plain"] != "same":
            stream.sendall(b"530 5.7.0 Must issue a STARTTLS command first\r\n")
        elif secure and not allowed(s, stream):
            stream.sendall(b"554 5.7.1 not allowed\r\n")
        elif verb.startswith("MAIL FROM") or verb.startswith("RCPT TO"):
            stream.sendall(b"250 ok\r\n")
        else:
            stream.sendall(b"502 5.5.2 not known\r\n")


def exactly(stream, n):
    data = b""
    while len(data) < n:
        more = stream.recv(n - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data


def packet(stream):
    head = exactly(stream, 4)
    return exactly(stream, int.from_bytes(head[:3], "little"))


def mysql(s, stream, tls_context):
    """As far as a login goes: greeting, SSLRequest, TLS, login, OK or an error."""
    def send(number, body):
        stream.sendall(len(body).to_bytes(3, "little") + bytes([number]) + body)

    greeting = b"\x0a8.0.36\0" + b"\1\0\0\0" + b"saltsalt\0" + (0x8A00).to_bytes(2, "little") + b"\x21\2\0"
    send(0, greeting + (0x0008).to_bytes(2, "little") + b"\x15" + bytes(10) + b"saltsaltsalt\0mysql_native_password\0")
    login, secure, number = packet(stream), False, 2
    if len(login) == 32 and login[1] & 0x08:
        stream, secure, number = tls_context.wrap_socket(stream, server_side=True), True, 3
        packet(stream)
    if secure and allowed(s, stream) or not secure and s["plain"] == "same":
        send(number, b"\0\0\0\2\0\0\0")
    else:
        send(number, b"\xff" + (1045).to_bytes(2, "little") + b"#28000Access denied")
    linger(stream)


def serve(s, raw, tls_context):
    stream = raw
    try:
        raw.settimeout(10)
        if s["protocol"] == "mysql":
            return mysql(s, raw, tls_context)
        if s["protocol"] == "smtp":
            return smtp(s, raw, tls_context)
        speak = lines if s["protocol"] == "tcp" else http
        if tls_context is None or (s["plain"] == "same" and raw.recv(1, socket.MSG_PEEK) != b"\x16"):
            if tls_context is None and s["plain"] == "redirect":
                raw.recv(65536)
                raw.sendall(b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://localhost/\r\n"
                            b"Content-Length: 0\r\nConnection: close\r\n\r\n")
                return None
            return speak(s, raw, False)
        stream = tls_context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        stream.do_handshake()
        speak(s, stream)
    except (OSError, ValueError):
        pass
    finally:
        linger(stream)
        stream.close()


def listen(s, port, tls_context):
    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    while True:
        raw, _ = listener.accept()
        threading.Thread(target=serve, args=(s, raw, tls_context), daemon=True).start()


def main():
    with open(sys.argv[1]) as f:
        setups = json.load(f)
    for s in setups:
        threading.Thread(target=listen, args=(s, s["port"], context(s)), daemon=True).start()
        if s["also"]:
            threading.Thread(target=listen, args=(s, s["also"], None), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
