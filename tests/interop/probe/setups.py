"""Every set-up of every kind of server, and what is true of it. `client.py` shows that it is true."""

import dataclasses

import pki

CASES = ("none", *pki.Pki.CLIENTS)
UNVERIFIED = ("self-signed", "wrong-ca", "expired", "not-yet-valid", "ca-as-leaf", "wrong-usage", "revoked")
CERTS = {
    "server-long": "long-lived-cert/live-server",
    "server-incomplete": "weak-cert/live-incomplete-chain",
    "server-ca-leaf": "weak-cert/live-ca-as-leaf",
    "server-expired": "weak-cert/live-expired",
    "server-two-uris": "weak-cert/live-several-uris",
    "server-no-san": "weak-cert/live-no-san",
}
CLIENT_FINDINGS = {
    **{case: f"server-client-cert-unverified/live-{case}" for case in UNVERIFIED},
    "other-identity": "identity-binding-absent/live-other-identity",
}
RESUMED = "server-client-cert-unverified/live-resumed"
FRAMING = "request-smuggling/live-ambiguous-framing"
FINDINGS = {
    *CLIENT_FINDINGS.values(), *CERTS.values(), RESUMED, FRAMING,
    "server-client-auth-absent/live-not-asked", "server-client-auth-optional/live-none-accepted",
    "header-identity/live-reflected", "header-identity/live-believed", "plaintext-bypass/live-same-port",
    "plaintext-bypass/live-neighbour", "weak-tls/live-old-version", "weak-tls/live-weak-cipher",
}
# Who serves a request with Content-Length and Transfer-Encoding, as RFC 9112 permits if the length is dropped.
FRAMING_TAKEN = {"haproxy", "apache", "go"}
# Who judges nothing but the chain when the set-up is right: no way to say "not a CA".
CA_TAKEN = {"envoy", "stunnel", "postgres", "mariadb"}
# nginx and Apache forgive an issuer that they do not know, and nothing else.
NO_CA = frozenset({"expired", "not-yet-valid", "wrong-usage"})
SURPRISES = {
    ("nginx", "any-cert"): {"never_lets": NO_CA},
    ("apache", "any-cert"): {"never_lets": NO_CA, "also_lets": frozenset({"none"})},
    # OpenSSL can leave out the dates as a whole only.
    ("python", "expired-ok"): {"also_lets": frozenset({"not-yet-valid"})},
    ("go", "expired-ok"): {"also_lets": frozenset({"not-yet-valid"})},
    ("envoy", "expired-ok"): {"also_lets": frozenset({"not-yet-valid"})},
    # Its validator for SPIFFE looks at the CA flag, which the usual one does not, and not at the usages.
    ("envoy", "spiffe"): {"also_lets": frozenset({"wrong-usage"})},
    # Looks at the signature, and so at nothing else.
    ("java", "expired-ok"): {"also_lets": frozenset({"not-yet-valid", "wrong-usage"})},
}


@dataclasses.dataclass
class Setup:
    """`wrong`: findings that must be there; `right`: that must not; `may`: what another finding already says."""

    kind: str
    what: str
    protocol: str = "http"
    auth: str = "strict"
    crl: bool = False
    cert: str = "server"
    old: bool = False
    weak: bool = False
    # Of the client's identity headers: the answer shows them (reflected), they decide (believed), the proxy removes
    # them before one that would believe them (sanitized), or puts its own in their place, which are shown (rewritten).
    headers: str = ""
    plain: str = ""
    framing: bool = False
    # True: a resumed session is not judged again. False: it is, or none is resumed.
    resume: bool = False
    # What differs from what its kind of authentication lets in, and why is said where it is given.
    also_lets: frozenset = frozenset()
    never_lets: frozenset = frozenset()
    port: int = 0
    also: int = 0

    @property
    def name(self):
        return f"{self.kind}-{self.protocol}-{self.what}"

    @property
    def lets(self):
        """The client certificates with which one gets an answer."""
        lets = {
            "strict": {"right", "revoked"},
            "spiffe": {"right", "revoked"},
            "expired-ok": {"right", "expired", "revoked", "ca-as-leaf"},
            "any-identity": {"right", "other-identity", "revoked", "ca-as-leaf"},
            "optional": {"none", "right", "other-identity", "revoked", "ca-as-leaf"},
            "any-cert": set(CASES) - {"none"},
            "not-asked": set(CASES),
        }[self.auth]
        if self.auth == "strict" and self.kind in CA_TAKEN:
            lets |= {"ca-as-leaf"}
        if self.crl:
            lets -= {"revoked"}
        return (lets | self.also_lets) - self.never_lets

    @property
    def by_name(self):
        """Bound to a DNS or common name, which what the probe makes for itself does not have."""
        return self.kind in ("stunnel", "postgres", "mariadb") and self.auth == "strict"

    @property
    def tells_revoked(self):
        """Whether the probe is given the revoked certificate, without which it cannot know."""
        return self.crl or self.what == "no-crl"

    @property
    def wrong(self):
        found = set()
        if self.auth == "not-asked":
            found.add("server-client-auth-absent/live-not-asked")
        else:
            if "none" in self.lets:
                found.add("server-client-auth-optional/live-none-accepted")
            found |= {CLIENT_FINDINGS[c] for c in self.lets if c in CLIENT_FINDINGS}
        if not self.tells_revoked:
            found.discard(CLIENT_FINDINGS["revoked"])
        if self.resume:
            found.add(RESUMED)
        if self.cert in CERTS:
            found.add(CERTS[self.cert])
        if self.headers in ("reflected", "believed"):
            found.add(f"header-identity/live-{self.headers}")
        if self.plain in ("same", "neighbour"):
            found.add(f"plaintext-bypass/live-{'same-port' if self.plain == 'same' else 'neighbour'}")
        if self.old:
            found.add("weak-tls/live-old-version")
        if self.weak:
            found.add("weak-tls/live-weak-cipher")
        if self.protocol == "http" and (self.framing or self.kind in FRAMING_TAKEN):
            found.add(FRAMING)
        return found - self.may

    @property
    def may(self):
        may = set()
        if self.auth in ("not-asked", "optional", "any-cert"):
            may |= {RESUMED, CLIENT_FINDINGS["other-identity"]}
        if self.auth in ("optional", "any-cert"):
            may |= {CLIENT_FINDINGS[c] for c in self.lets if c in UNVERIFIED and c not in ("self-signed", "wrong-ca")}
        if self.old:
            may.add("weak-tls/live-weak-cipher")
        if self.by_name:
            may.add(CLIENT_FINDINGS["ca-as-leaf"])
        return may

    @property
    def right(self):
        return FINDINGS - self.wrong - self.may

    def record(self, directory):
        """For the servers of our own."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["also_lets"], fields["never_lets"]
        return {**fields, "name": self.name, "dir": directory, "id": pki.ID}


def common(kind, auths, extra=()):
    out = [Setup(kind, "strict", crl=True), Setup(kind, "no-crl")]
    out += [Setup(kind, auth, auth=auth, **SURPRISES.get((kind, auth), {})) for auth in auths]
    out += [Setup(kind, cert, cert=cert) for cert in CERTS]
    out += [Setup(kind, "old-tls", old=True), Setup(kind, "weak-cipher", weak=True)]
    out += [Setup(kind, "resumed", resume=True)]
    cannot = {
        # mod_ssl removes what has no secrecy from every list of ciphers.
        ("apache", "weak-cipher"),
        # BoringSSL has none any more.
        ("envoy", "weak-cipher"),
        # Go looks at the dates of a session's certificate again, whatever the set-up.
        ("go", "resumed"),
    }
    return [s for s in out if (s.kind, s.what) not in cannot] + list(extra)


def around(kind, same=True, headers=("reflected", "believed"), **same_with):
    out = [Setup(kind, "neighbour", plain="neighbour"), Setup(kind, "neighbour-redirects", plain="redirect")]
    out += [Setup(kind, f"headers-{h}", headers=h) for h in headers]
    if same:
        out.append(Setup(kind, "plaintext", plain="same", **same_with))
    return out


def all_setups():
    auths = ["any-identity", "not-asked", "optional", "any-cert", "expired-ok"]
    proxied = ("reflected", "believed", "sanitized", "rewritten")
    out = {
        "nginx": common("nginx", auths[:4], around("nginx", headers=proxied)),
        "haproxy": common("haproxy", auths, around("haproxy", headers=proxied)),
        "apache": common("apache", auths[:4], around("apache", same=False, headers=proxied)),
        "stunnel": common("stunnel", auths[:4]),
        "envoy": common("envoy", auths, around("envoy", headers=proxied) + [
            Setup("envoy", "spiffe", auth="spiffe", **SURPRISES["envoy", "spiffe"])]),
        "node": common("node", auths, around("node") + [Setup("node", "lenient", framing=True)]),
        "java": common("java", auths, around("java", same=False) + [Setup("java", "lenient", framing=True)]),
        "go": common("go", auths, around("go", auth="any-identity")),
        "python": common("python", ["any-identity", "not-asked", "optional", "expired-ok"],
                         around("python") + [Setup("python", "lenient", framing=True)]),
        "postgres": [
            Setup("postgres", "strict", "postgres", crl=True), Setup("postgres", "no-crl", "postgres"),
            Setup("postgres", "any-identity", "postgres", auth="any-identity"),
            Setup("postgres", "not-asked", "postgres", auth="not-asked"),
            Setup("postgres", "optional", "postgres", auth="optional"),
            Setup("postgres", "plaintext", "postgres", plain="same"),
            Setup("postgres", "old-tls", "postgres", old=True),
            Setup("postgres", "server-long", "postgres", cert="server-long"),
        ],
    }
    out["mariadb"] = [
        Setup("mariadb", "strict", "mysql", crl=True, resume=True), Setup("mariadb", "no-crl", "mysql", resume=True),
        Setup("mariadb", "any-identity", "mysql", auth="any-identity", resume=True),
        Setup("mariadb", "optional", "mysql", auth="optional"),
        Setup("mariadb", "plaintext", "mysql", auth="optional", plain="same"),
        Setup("mariadb", "server-long", "mysql", cert="server-long", resume=True),
    ]
    for kind in ("node", "go"):
        out[kind] += [Setup(kind, "strict", "grpc", crl=True)]
        out[kind] += [Setup(kind, auth, "grpc", auth=auth) for auth in auths[:4]]
    for protocol in ("smtp", "tcp", "mysql"):
        out["python"] += [
            Setup("python", "strict", protocol, crl=True), Setup("python", "plaintext", protocol, plain="same"),
            *[Setup("python", auth, protocol, auth=auth) for auth in auths[:3]],
        ]
    return out
