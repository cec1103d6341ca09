"""The certificates of the probe tests: a CA for clients, a CA with an intermediate for servers, and one
certificate for each way to be wrong."""

import datetime
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ID = "spiffe://corp.test/ns/shop/sa/web"
OTHER_ID = "spiffe://corp.test/ns/bank/sa/teller"
SERVER_ID = "spiffe://corp.test/ns/shop/sa/api"

NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)
BOTH = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
PEM = serialization.Encoding.PEM


class Pair:
    def __init__(self, cert, key):
        self.cert, self.key = cert, key

    def cert_pem(self):
        return self.cert.public_bytes(PEM)

    def key_pem(self):
        return self.key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def issue(name, issuer=None, ca=False, uris=(), dns=(), start=NOW - HOUR, end=NOW + 12 * HOUR, usages=BOTH,
          can_sign=None):
    """Without an issuer the certificate signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    authority = issuer.key.public_key() if issuer else key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), False)
        .add_extension(
            x509.KeyUsage(
                # A CA used as a leaf may sign handshakes too: only then is it the CA flag that is judged.
                digital_signature=bool(uris) or not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False,
                key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                decipher_only=False),
            True)
    )
    names = [x509.DNSName(n) for n in dns] + [x509.UniformResourceIdentifier(u) for u in uris]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    if uris or not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
    return Pair(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


class Pki:
    """Everything as files in one folder: NAME.pem (chain), NAME.key, NAME.both.pem (chain and key)."""

    # The client certificates, by the case that the probe reports for them.
    CLIENTS = ("right", "self-signed", "wrong-ca", "expired", "not-yet-valid", "other-identity", "ca-as-leaf",
               "wrong-usage", "revoked")

    def __init__(self, directory):
        self.directory = directory
        long = {"start": NOW - DAY, "end": NOW + 3650 * DAY}
        client_ca = issue("client-ca", ca=True, **long)
        self.client_ca = client_ca
        server_root = issue("server-root", ca=True, **long)
        server_ca = issue("server-ca", server_root, ca=True, **long)
        # The same name as the right CA: who compares names only is fooled.
        wrong_ca = issue("client-ca", ca=True, **long)
        self.write("client-ca", client_ca)
        self.write("server-root", server_root)

        web = {"uris": [ID], "dns": ["web.corp.test"]}
        self.write("right", issue("web", client_ca, **web))
        self.write("self-signed", issue("web", **web))
        self.write("wrong-ca", issue("web", wrong_ca, **web))
        self.write("expired", issue("web", client_ca, start=NOW - 2 * DAY, end=NOW - DAY, **web))
        self.write("not-yet-valid", issue("web", client_ca, start=NOW + DAY, end=NOW + 2 * DAY, **web))
        self.write("other-identity", issue("teller", client_ca, uris=[OTHER_ID], dns=["teller.corp.test"]))
        self.write("ca-as-leaf", issue("web", client_ca, ca=True, **web))
        self.write("wrong-usage", issue("web", client_ca, usages=[ExtendedKeyUsageOID.SERVER_AUTH], **web))
        revoked = issue("web", client_ca, **web)
        self.write("revoked", revoked)
        self.crl(client_ca, revoked)

        api = {"uris": [SERVER_ID], "dns": ["localhost"]}
        good = issue("api", server_ca, **api)
        self.write("server", good, server_ca)
        self.write("server-incomplete", good)
        self.write("server-long", issue("api", server_ca, end=NOW + 3 * 365 * DAY, **api), server_ca)
        self.write("server-ca-leaf", issue("api", server_ca, ca=True, **api), server_ca)
        self.write("server-expired", issue("api", server_ca, start=NOW - 2 * DAY, end=NOW - DAY, **api), server_ca)
        two = issue("api", server_ca, uris=[SERVER_ID, OTHER_ID], dns=["localhost"])
        self.write("server-two-uris", two, server_ca)
        self.write("server-no-san", issue("localhost", server_ca), server_ca)

    def short_lived(self, name, seconds):
        """For resumption: a session begun in time and resumed after the end."""
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        end = now + datetime.timedelta(seconds=seconds)
        self.write(name, issue("web", self.client_ca, uris=[ID], dns=["web.corp.test"], end=end))
        return end.timestamp()

    def path(self, name):
        return f"{self.directory}/{name}"

    def put(self, name, data, mode=0o644):
        with open(os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as f:
            f.write(data)

    def write(self, name, pair, *chain):
        self.__dict__.setdefault("pairs", {})[name] = pair
        pem = b"".join([pair.cert_pem()] + [c.cert_pem() for c in chain])
        self.put(f"{name}.pem", pem)
        self.put(f"{name}.key", pair.key_pem(), 0o600)
        self.put(f"{name}.both.pem", pem + pair.key_pem(), 0o600)

    def crl(self, ca, *revoked):
        builder = x509.CertificateRevocationListBuilder().issuer_name(ca.cert.subject)
        builder = builder.last_update(NOW - HOUR).next_update(NOW + DAY)
        for r in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(r.cert.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(NOW - HOUR).build())
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
        builder = builder.add_extension(authority, False).add_extension(x509.CRLNumber(1), False)
        self.put("crl.pem", builder.sign(ca.key, hashes.SHA256()).public_bytes(PEM))
