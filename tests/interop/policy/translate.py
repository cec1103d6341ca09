"""AuthorizationPolicy to Envoy's RBAC, as Istio's sidecar does it: the oracle's half that is not Envoy.

Written apart from the engine and in another language, and itself checked against Istio's golden files.
"""

import re

HTTP_ONLY = {"hosts", "methods", "paths", "requestPrincipals"}
ANY_RULE, ANY_ID = {"any": True}, {"any": True}


class Dropped(Exception):
    """A rule that cannot be expressed on TCP."""


def string(value):
    if value == "*":
        return {"safeRegex": {"regex": ".+"}}
    if value.startswith("*"):
        return {"suffix": value[1:]}
    if value.endswith("*"):
        return {"prefix": value[:-1]}
    return {"exact": value}


def cidr(value):
    address, _, bits = value.partition("/")
    return {"addressPrefix": address, "prefixLen": int(bits) if bits else (128 if ":" in address else 32)}


def authenticated(matcher):
    return {"authenticated": {"principalName": matcher}}


def principal(value):
    if value == "*":
        return authenticated({"safeRegex": {"regex": ".+"}})
    if value.startswith("*"):
        return authenticated({"safeRegex": {"regex": "spiffe://.*" + re.escape(value[1:]).replace("\\-", "-").replace("\\/", "/")}})
    if value.endswith("*"):
        return authenticated({"prefix": "spiffe://" + value[:-1]})
    return authenticated({"exact": "spiffe://" + value})


def namespace(value):
    pattern = re.escape(value).replace("\\*", ".*").replace("\\-", "-")
    return authenticated({"safeRegex": {"regex": f".*/ns/{pattern}/.*"}})


def service_account(own_namespace):
    def of(value):
        ns, _, sa = value.rpartition("/")
        ns = re.escape(ns or own_namespace).replace("\\-", "-")
        sa = re.escape(sa).replace("\\-", "-")
        return authenticated({"safeRegex": {"regex": f"spiffe://.+/ns/{ns}/(.+/|)sa/{sa}(/.+)?"}})

    return of


def trust_domain(value):
    if "*" in value:
        pattern = re.escape(value).replace("\\*", "[^/]*").replace("\\-", "-")
        return authenticated({"safeRegex": {"regex": f"spiffe://{pattern}/.*"}})
    return authenticated({"prefix": f"spiffe://{value}/"})


def header(name, ignore_case=False):
    def of(value):
        if value == "*":
            return {"header": {"name": name, "presentMatch": True}}
        matcher = dict(string(value))
        if ignore_case:
            matcher["ignoreCase"] = True
        return {"header": {"name": name, "stringMatch": matcher}}

    return of


def path(value):
    if "{" in value:
        template = value.replace("{*}", "*").replace("{**}", "**")
        kind = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
        return {"uriTemplate": {"name": "uri-template", "typedConfig": {"@type": kind, "pathTemplate": template}}}
    return {"urlPath": {"path": string(value)}}


def request_principal(value):
    def meta(key, matcher):
        return {
            "metadata": {
                "filter": "envoy.filters.http.jwt_authn",
                "path": [{"key": "payload"}, {"key": key}],
                "value": {"stringMatch": matcher},
            }
        }

    present = {"safeRegex": {"regex": ".+"}}
    if "/" in value:
        iss, _, sub = value.rpartition("/")
        pair = string(iss), string(sub)
    elif value == "*":
        pair = present, present
    elif value.startswith("*"):
        pair = present, string(value)
    elif value.endswith("*"):
        pair = string(value), present
    else:
        pair = string(value), {"exact": ""}
    return {"andIds": {"ids": [meta("iss", pair[0]), meta("sub", pair[1])]}}


def rule_fields(out, make, values, nots):
    if values:
        out.append({"orRules": {"rules": [make(v) for v in values]}})
    if nots:
        out.append({"notRule": {"orRules": {"rules": [make(v) for v in nots]}}})


def id_fields(out, make, values, nots):
    if values:
        out.append({"orIds": {"ids": [make(v) for v in values]}})
    if nots:
        out.append({"notId": {"orIds": {"ids": [make(v) for v in nots]}}})


def condition(key, own_namespace):
    """Where a condition goes, how one value is matched, and whether only HTTP has it."""
    simple = {
        "source.ip": ("id", lambda v: {"directRemoteIp": cidr(v)}, False),
        "remote.ip": ("id", lambda v: {"remoteIp": cidr(v)}, False),
        "source.namespace": ("id", namespace, False),
        "source.principal": ("id", principal, False),
        "source.serviceAccount": ("id", service_account(own_namespace), False),
        "source.trustDomain": ("id", trust_domain, False),
        "request.auth.principal": ("id", request_principal, True),
        "destination.ip": ("rule", lambda v: {"destinationIp": cidr(v)}, False),
        "destination.port": ("rule", lambda v: {"destinationPort": int(v)}, False),
        "connection.sni": ("rule", lambda v: {"requestedServerName": string(v)}, False),
    }
    if key in simple:
        return simple[key]
    if key.startswith("request.headers["):
        return "id", header(key[len("request.headers[") : -1]), True
    raise ValueError(key)


def field(spec, name, other, tcp, tcp_allow):
    """Values and exceptions of a field; on TCP those of HTTP are dropped, or with them the whole rule."""
    values, nots = spec.get(name) or [], spec.get(other) or []
    if tcp and name in HTTP_ONLY and (values or nots):
        if tcp_allow:
            raise Dropped
        return [], []
    return values, nots


def not_name(name):
    return "not" + name[0].upper() + name[1:]


def translate_rule(rule, own_namespace, tcp=False, allow=True):
    drop = tcp and allow
    when_rules, when_ids = [], []
    for c in rule.get("when") or []:
        where, make, http = condition(c["key"], own_namespace)
        if http and tcp:
            if drop:
                raise Dropped
            continue
        target, add = (when_rules, rule_fields) if where == "rule" else (when_ids, id_fields)
        add(target, make, c.get("values"), c.get("notValues"))
    permissions = []
    for to in rule.get("to") or [{}]:
        op, out = to.get("operation", {}), []
        for name, make in [
            ("hosts", header(":authority", True)),
            ("methods", header(":method")),
            ("paths", path),
            ("ports", lambda v: {"destinationPort": int(v)}),
        ]:
            rule_fields(out, make, *field(op, name, not_name(name), tcp, drop))
        permissions.append({"andRules": {"rules": out + when_rules or [ANY_RULE]}})
    principals = []
    for source in rule.get("from") or [{}]:
        src, out = source.get("source", {}), []
        for name, make in [
            ("principals", principal),
            ("requestPrincipals", request_principal),
            ("serviceAccounts", service_account(own_namespace)),
            ("namespaces", namespace),
            ("trustDomains", trust_domain),
            ("remoteIpBlocks", lambda v: {"remoteIp": cidr(v)}),
            ("ipBlocks", lambda v: {"directRemoteIp": cidr(v)}),
        ]:
            id_fields(out, make, *field(src, name, not_name(name), tcp, drop))
        principals.append({"andIds": {"ids": out + when_ids or [ANY_ID]}})
    return {"permissions": permissions, "principals": principals}


NEVER = {"permissions": [{"notRule": {"any": True}}], "principals": [{"notId": {"any": True}}]}


def translate(policies, action, tcp=False):
    """The RBAC rules of all policies of one action; None where there is none."""
    chosen = [p for p in policies if (p.get("spec") or {}).get("action", "ALLOW") == action]
    if not chosen:
        return None
    out = {}
    for p in chosen:
        ns, name = p["metadata"].get("namespace", "default"), p["metadata"]["name"]
        rules = (p.get("spec") or {}).get("rules") or []
        if not rules:
            out[f"ns[{ns}]-policy[{name}]-rule[0]"] = NEVER
        for i, rule in enumerate(rules):
            try:
                compiled = translate_rule(rule or {}, ns, tcp, action == "ALLOW")
            except Dropped:
                continue
            out[f"ns[{ns}]-policy[{name}]-rule[{i}]"] = compiled
    rbac = {"policies": out}
    if action == "DENY":
        rbac["action"] = "DENY"
    return rbac
