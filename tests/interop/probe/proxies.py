"""Configuration of the servers that others wrote: for each kind, a function from its set-ups to one process."""

import json
import os
import shutil
import subprocess

import install
from ports import free_port

STRICT_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
OLD_CIPHERS = "ALL:@SECLEVEL=0"
WEAK_CIPHERS = "ECDHE+AESGCM:ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0"
HEADERS = ("X-Forwarded-Client-Cert", "X-SSL-Client-S-DN", "X-Forwarded-User")
CLEANED = ("sanitized", "rewritten")


def ciphers(s):
    return OLD_CIPHERS if s.old else WEAK_CIPHERS if s.weak else STRICT_CIPHERS


def save(world, name, text):
    path = f"{world.directory}/{name}"
    with open(path, "w") as f:
        f.write(text)
    return path


def backend(s, world):
    """Which application is behind a proxy, by what the set-up is about."""
    return world.apps[{"": "hello", "reflected": "echo", "rewritten": "echo"}.get(s.headers, "believe")]


def nginx(setups, world):
    out = [
        "daemon off; pid nginx.pid; error_log nginx.err; worker_processes 1; events { worker_connections 512; }",
        "http { access_log off; client_body_temp_path nb; proxy_temp_path np; fastcgi_temp_path nf;",
        "uwsgi_temp_path nu; scgi_temp_path ns; ssl_session_cache off;",
    ]
    verify = {"not-asked": "off", "optional": "optional", "any-cert": "optional_no_ca"}
    for s in setups:
        p = world.pki.path
        hello = 'return 200 "hello\\n";'
        out += [
            "server {", f"listen 127.0.0.1:{s.port} ssl; server_name localhost;",
            f"ssl_certificate {p(s.cert)}.pem; ssl_certificate_key {p(s.cert)}.key;",
            f"ssl_protocols {'TLSv1 TLSv1.1 ' if s.old else ''}TLSv1.2 TLSv1.3; ssl_ciphers {ciphers(s)};",
            f"ssl_session_tickets {'on' if s.resume else 'off'};",
            f"ssl_verify_client {verify.get(s.auth, 'on')};",
        ]
        if s.auth != "not-asked":
            out.append(f"ssl_client_certificate {p('client-ca.pem')};")
        if s.crl:
            out.append(f"ssl_crl {p('crl.pem')};")
        if s.auth == "any-cert":
            out.append('if ($ssl_client_verify = "NONE") { return 403; }')
        if s.plain == "same":
            out += ["error_page 497 =200 @plain;", f"location @plain {{ {hello} }}"]
        out.append("location / {")
        if s.auth == "strict":
            # nginx cannot read a URI out of a certificate: the application behind it does.
            app = backend(s, world) if s.headers else world.apps["bound"]
            out.append(f"proxy_pass http://127.0.0.1:{app}; proxy_set_header X-Peer-Cert $ssl_client_escaped_cert;")
            if s.headers in CLEANED:
                own = {"X-SSL-Client-S-DN": "$ssl_client_s_dn"} if s.headers == "rewritten" else {}
                out += [f'proxy_set_header {h} "{own.get(h, "")}";' for h in HEADERS]
        else:
            out.append(hello)
        out.append("} }")
        if s.also:
            answer = "return 301 https://localhost/;" if s.plain == "redirect" else hello
            out.append(f"server {{ listen 127.0.0.1:{s.also}; location / {{ {answer} }} }}")
    path = save(world, "nginx.conf", "\n".join(out) + "\n}\n")
    return [world.tools["nginx"], "-p", world.directory, "-e", "nginx.err", "-c", path]


def haproxy(setups, world):
    out = ["global", " tune.ssl.cachesize 0", "defaults", " mode http", " timeout client 10s",
           " timeout server 10s", " timeout connect 5s", "backend hello", f" server a 127.0.0.1:{world.apps['hello']}"]
    verify = {"not-asked": "", "optional": "verify optional"}
    for s in setups:
        p = world.pki.path
        port = s.port
        if s.plain == "same":
            port = free_port()
            out += [
                f"frontend front-{s.name}", " mode tcp", f" bind 127.0.0.1:{s.port}",
                " tcp-request inspect-delay 5s", " tcp-request content accept if { req.len gt 0 }",
                f" use_backend tls-{s.name} if {{ req.ssl_hello_type 1 }}", " default_backend plain",
                f"backend tls-{s.name}", " mode tcp", f" server a 127.0.0.1:{port}",
                "backend plain", " mode tcp", f" server a 127.0.0.1:{world.apps['hello']}",
            ]
        bind = [f"bind 127.0.0.1:{port} ssl crt {p(s.cert)}.both.pem", verify.get(s.auth, "verify required"),
                f"ssl-min-ver {'TLSv1.0' if s.old else 'TLSv1.2'} ciphers {ciphers(s)} alpn http/1.1"]
        if s.auth != "not-asked":
            bind.append(f"ca-file {p('client-ca.pem')}")
        if s.auth == "any-cert":
            bind.append("ca-ignore-err all crt-ignore-err all")
        if s.auth == "expired-ok":
            bind.append("crt-ignore-err 10")
        if s.crl:
            bind.append(f"crl-file {p('crl.pem')}")
        if not s.resume:
            bind.append("no-tls-tickets")
        out += [f"frontend {s.name}", " " + " ".join(bind)]
        if s.auth in ("strict", "expired-ok") and s.headers != "believed":
            # There is no fetch for URIs: the name with its tag and length is looked for in the certificate.
            name = world.id.encode()
            wanted = (bytes([0x86, len(name)]) + name).hex().upper()
            out.append(f" http-request deny deny_status 403 unless {{ ssl_c_der,hex -m sub {wanted} }}")
        if s.auth == "strict":
            is_ca = "0603551D13(0101FF)?04..30..0101FF"
            out.append(f" http-request deny deny_status 403 if {{ ssl_c_der,hex -m reg {is_ca} }}")
        if s.headers:
            out += [f" default_backend app-{s.name}", f"backend app-{s.name}",
                    " http-request set-header X-Peer-Cert %[ssl_c_der,base64]"]
            if s.headers in CLEANED:
                out += [f" http-request del-header {h}" for h in HEADERS]
                out.append(" http-request set-header X-SSL-Client-S-DN %[ssl_c_s_dn]")
            out.append(f" server a 127.0.0.1:{backend(s, world)}")
        else:
            out.append(" default_backend hello")
        if s.also:
            out += [f"frontend plain-{s.name}", f" bind 127.0.0.1:{s.also}",
                    " http-request redirect scheme https code 301" if s.plain == "redirect"
                    else " default_backend hello"]
    path = save(world, "haproxy.cfg", "\n".join(out) + "\n")
    return [world.tools["haproxy"], "-db", "-f", path]


def apache(setups, world):
    modules = install.modules(world.tools["apache2"])
    out = [f"ServerRoot {world.directory}", "PidFile apache.pid", "ErrorLog apache.err", "ServerName localhost",
           f"DefaultRuntimeDir {world.directory}", "Mutex posixsem", "ThreadsPerChild 25", "StartServers 1"]
    for module in ("mpm_event", "unixd", "ssl", "authz_core", "headers", "proxy", "proxy_http", "rewrite", "alias"):
        if os.path.exists(f"{modules}/mod_{module}.so"):
            out.append(f"LoadModule {module}_module {modules}/mod_{module}.so")
    if os.geteuid() == 0:
        out += ["User nobody", "Group nogroup"]
    verify = {"not-asked": "none", "optional": "optional", "any-cert": "optional_no_ca"}
    for s in setups:
        p = world.pki.path
        out += [
            f"Listen 127.0.0.1:{s.port}", f"<VirtualHost 127.0.0.1:{s.port}>", "SSLEngine on",
            f"SSLCertificateFile {p(s.cert)}.pem", f"SSLCertificateKeyFile {p(s.cert)}.key",
            f"SSLProtocol -all {'+TLSv1 +TLSv1.1 ' if s.old else ''}+TLSv1.2 +TLSv1.3",
            f"SSLCipherSuite {ciphers(s)}", f"SSLSessionTickets {'on' if s.resume else 'off'}",
            f"SSLVerifyClient {verify.get(s.auth, 'require')}", "SSLVerifyDepth 2",
        ]
        if s.auth != "not-asked":
            out.append(f"SSLCACertificateFile {p('client-ca.pem')}")
        if s.crl:
            out += [f"SSLCARevocationFile {p('crl.pem')}", "SSLCARevocationCheck leaf"]
        if s.auth == "strict" and s.headers != "believed":
            out += ["<Location />", "<RequireAll>",
                    f"Require expr 'URI:{world.id}' in PeerExtList('subjectAltName') || "
                    f"'URI:{world.id}, DNS:web.corp.test' in PeerExtList('subjectAltName') || "
                    f"'DNS:web.corp.test, URI:{world.id}' in PeerExtList('subjectAltName')",
                    "Require expr ! ('CA:TRUE' in PeerExtList('basicConstraints'))",
                    "</RequireAll>", "</Location>"]
        if s.headers:
            out.append('RequestHeader set X-Peer-Cert "expr=%{escape:%{SSL_CLIENT_CERT}}"')
        if s.headers in CLEANED:
            out += [f"RequestHeader unset {h}" for h in HEADERS]
            out.append('RequestHeader set X-SSL-Client-S-DN "%{SSL_CLIENT_S_DN}s"')
        out += [f"ProxyPass / http://127.0.0.1:{backend(s, world)}/", "</VirtualHost>"]
        if s.also:
            out += [f"Listen 127.0.0.1:{s.also}", f"<VirtualHost 127.0.0.1:{s.also}>",
                    "Redirect permanent / https://localhost/" if s.plain == "redirect"
                    else f"ProxyPass / http://127.0.0.1:{world.apps['hello']}/", "</VirtualHost>"]
    path = save(world, "apache.conf", "\n".join(out) + "\n")
    return [world.tools["apache2"], "-DFOREGROUND", "-f", path]


def stunnel(setups, world):
    out = ["foreground = yes", "pid =", f"output = {world.directory}/stunnel.err", "debug = 4"]
    for s in setups:
        p = world.pki.path
        out += [
            f"[{s.name}]", f"accept = 127.0.0.1:{s.port}", f"connect = 127.0.0.1:{world.apps['hello']}",
            f"cert = {p(s.cert)}.pem", f"key = {p(s.cert)}.key",
            f"sslVersionMin = {'TLSv1' if s.old else 'TLSv1.2'}", f"ciphers = {ciphers(s)}",
            f"securityLevel = {0 if s.old or s.weak else 2}",
        ]
        if s.auth != "not-asked":
            out.append(f"CAfile = {p('client-ca.pem')}")
        # 0 asks and takes anything, 1 judges what is sent, 2 wants something to judge.
        out += {"not-asked": [], "any-cert": ["verify = 0", "requireCert = yes"], "optional": ["verify = 1"]}.get(
            s.auth, ["verify = 2"])
        if s.auth == "strict":
            out.append("checkHost = web.corp.test")
        if s.crl:
            out.append(f"CRLfile = {p('crl.pem')}")
        if not s.resume:
            out += ["options = NO_TICKET", "sessionResume = no"]
    return [world.tools["stunnel"], save(world, "stunnel.conf", "\n".join(out) + "\n")]


def envoy(setups, world):
    ext = "type.googleapis.com/envoy.extensions."
    p = world.pki.path
    file = lambda name: {"filename": p(name)}  # noqa: E731

    def manager(s, plain=False):
        action = {"direct_response": {"status": 200, "body": {"inline_string": "hello\n"}}}
        if plain and s.plain == "redirect":
            action = {"redirect": {"https_redirect": True}}
        elif s.headers:
            action = {"route": {"cluster": s.headers}}
        out = {
            "@type": ext + "filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "h",
            "forward_client_cert_details": {
                "reflected": "ALWAYS_FORWARD_ONLY", "believed": "APPEND_FORWARD"}.get(s.headers, "SANITIZE_SET"),
            "set_current_client_cert_details": {"uri": True, "subject": True},
            "http_filters": [
                {"name": "r", "typed_config": {"@type": ext + "filters.http.router.v3.Router"}}],
            "route_config": {"virtual_hosts": [
                {"name": "a", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **action}]}]},
        }
        if s.headers in CLEANED:
            out["route_config"]["request_headers_to_remove"] = ["x-ssl-client-s-dn", "x-forwarded-user"]
        return [{"name": "h", "typed_config": out}]

    def tls(s):
        common = {
            "tls_certificates": [{"certificate_chain": file(f"{s.cert}.pem"), "private_key": file(f"{s.cert}.key")}],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_0" if s.old else "TLSv1_2"},
        }
        if s.old or s.weak:
            common["tls_params"]["cipher_suites"] = ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA"]
        if s.auth == "spiffe":
            domains = [{"name": "corp.test", "trust_bundle": file("client-ca.pem")}]
            validator = {"@type": ext + "transport_sockets.tls.v3.SPIFFECertValidatorConfig", "trust_domains": domains}
            common["validation_context"] = {
                "custom_validator_config": {"name": "envoy.tls.cert_validator.spiffe", "typed_config": validator},
            }
        elif s.auth != "not-asked":
            common["validation_context"] = {"trusted_ca": file("client-ca.pem")}
        if s.crl:
            common["validation_context"]["crl"] = file("crl.pem")
        if s.auth == "any-cert":
            common["validation_context"]["trust_chain_verification"] = "ACCEPT_UNTRUSTED"
        if s.auth == "expired-ok":
            common["validation_context"]["allow_expired_certificate"] = True
        if s.auth in ("strict", "expired-ok", "spiffe") and s.headers not in ("believed", "sanitized"):
            common["validation_context"]["match_typed_subject_alt_names"] = [
                {"san_type": "URI", "matcher": {"exact": world.id}}]
        return {"name": "tls", "typed_config": {
            "@type": ext + "transport_sockets.tls.v3.DownstreamTlsContext", "common_tls_context": common,
            "require_client_certificate": s.auth not in ("not-asked", "optional"),
            "disable_stateless_session_resumption": not s.resume,
            "disable_stateful_session_resumption": not s.resume}}

    def listener(port, chains, inspect=False):
        out = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}, "filter_chains": chains}
        if inspect:
            inspector = {"@type": ext + "filters.listener.tls_inspector.v3.TlsInspector"}
            out["listener_filters"] = [{"name": "tls", "typed_config": inspector}]
        return out

    listeners = []
    for s in setups:
        chains = [{"filters": manager(s), "transport_socket": tls(s)}]
        if s.plain == "same":
            chains[0]["filter_chain_match"] = {"transport_protocol": "tls"}
            chains.append({"filters": manager(s, True), "filter_chain_match": {"transport_protocol": "raw_buffer"}})
        listeners.append(listener(s.port, chains, s.plain == "same"))
        if s.also:
            listeners.append(listener(s.also, [{"filters": manager(s, True)}]))
    clusters = []
    for name, app in (("reflected", "echo"), ("rewritten", "echo"), ("believed", "believe"), ("sanitized", "believe")):
        address = {"socket_address": {"address": "127.0.0.1", "port_value": world.apps[app]}}
        clusters.append({"name": name, "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address}}]}]}})
    path = save(world, "envoy.json", json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}}))
    base = str(2000 + os.getpid() % 30000)
    return [world.tools["envoy"], "-c", path, "--concurrency", "1", "-l", "error", "--base-id", base]


def postgres(setups, world):
    """One process for each set-up, since TLS is set for a whole server; the first data folder is copied."""
    user = []
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    home = f"{world.directory}/postgres"
    os.makedirs(home)
    for name in os.listdir(world.pki.directory):
        if name.startswith(("server", "client-ca", "crl")):
            shutil.copy(world.pki.path(name), f"{home}/{name}")
    if user:
        subprocess.run(["chown", "-R", "nobody:nogroup", home], check=True)
    with open(f"{world.directory}/initdb.err", "wb") as log:
        subprocess.run([*user, world.tools["initdb"], "-D", f"{home}/data", "-A", "trust", "-U", "postgres", "-N",
                        "--locale=C", "--wal-segsize=1"], check=True, stdout=log, stderr=log, timeout=60, cwd=home)
    create = "CREATE ROLE web LOGIN; CREATE ROLE countersign LOGIN;"
    subprocess.run([*user, world.tools["postgres"], "--single", "-D", f"{home}/data", "postgres"], input=create,
                   text=True, check=True, capture_output=True, timeout=60, cwd=home)
    commands = []
    for s in setups:
        data = f"{home}/{s.name}"
        subprocess.run(["cp", "-a", f"{home}/data", data], check=True)
        how = {"strict": "cert map=web", "any-identity": "trust clientcert=verify-ca"}.get(s.auth, "trust")
        hba = f"hostssl all all 127.0.0.1/32 {how}\n"
        if s.plain == "same":
            hba += "host all all 127.0.0.1/32 trust\n"
        with open(f"{data}/pg_hba.conf", "w") as f:
            f.write(hba)
        with open(f"{data}/pg_ident.conf", "w") as f:
            # Whoever owns the certificate may be any of these; which user is asked for is the probe's choice.
            f.write("".join(f"web web {role}\n" for role in ("web", "postgres", "countersign")))
        settings = {
            "ssl": "on", "ssl_cert_file": f"{home}/{s.cert}.pem", "ssl_key_file": f"{home}/{s.cert}.key",
            "ssl_ca_file": "" if s.auth == "not-asked" else f"{home}/client-ca.pem",
            "ssl_crl_file": f"{home}/crl.pem" if s.crl else "",
            "ssl_min_protocol_version": "TLSv1" if s.old else "TLSv1.2", "ssl_ciphers": ciphers(s),
            "listen_addresses": "127.0.0.1", "port": str(s.port), "unix_socket_directories": "",
            "shared_buffers": "1MB", "max_connections": "40", "fsync": "off",
        }
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        commands.append([*user, world.tools["postgres"], "-D", data, *flags])
    return commands


def mariadb(setups, world):
    """One process for each set-up; who needs which certificate is a matter of the account."""
    server = world.tools["mariadbd"]
    usr = os.path.dirname(os.path.dirname(server))
    share = f"{usr}/share/mysql"
    me = ["--user=root"] if os.geteuid() == 0 else []
    common = [server, "--no-defaults", *me, f"--basedir={usr}", f"--lc-messages-dir={share}", "--innodb=OFF",
              "--default-storage-engine=Aria", "--aria-log-file-size=8M", "--key-buffer-size=1M",
              "--aria-pagecache-buffer-size=1M", "--performance-schema=OFF"]
    home = f"{world.directory}/mariadb"
    os.makedirs(f"{home}/data")
    tables = "create database mysql;\nuse mysql;\n"
    for name in ("mysql_system_tables.sql", "mysql_system_tables_data.sql"):
        with open(f"{share}/{name}") as f:
            tables += f.read() + "\n"
    subprocess.run([*common, f"--datadir={home}/data", "--bootstrap", "--skip-networking"], input=tables, text=True,
                   check=True, capture_output=True, timeout=60, cwd=home, env=install.environment())
    commands = []
    for s in setups:
        data = f"{home}/{s.name}"
        subprocess.run(["cp", "-a", f"{home}/data", data], check=True)
        # The subject is compared as text, so it is the certificate's whole name that may log in.
        demand = {"strict": "REQUIRE SUBJECT '/CN=web'", "any-identity": "REQUIRE X509", "optional": "REQUIRE SSL"}
        how = "REQUIRE NONE" if s.plain == "same" else demand[s.auth]
        with open(f"{data}/accounts.sql", "w") as f:
            f.write("".join(f"CREATE USER '{user}'@'%' {how};\n" for user in ("web", "countersign")))
        p = world.pki.path
        commands.append([*common, f"--datadir={data}", f"--port={s.port}", "--bind-address=127.0.0.1",
                         f"--socket={data}/s", f"--pid-file={data}/pid", f"--init-file={data}/accounts.sql",
                         f"--ssl-cert={p(s.cert)}.pem", f"--ssl-key={p(s.cert)}.key",
                         f"--ssl-ca={p('client-ca.pem')}", "--tls-version=TLSv1.2,TLSv1.3", "--max-connections=50",
                         *([f"--ssl-crl={p('crl.pem')}"] if s.crl else [])])
    return commands
