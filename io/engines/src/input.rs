//! The question as OPA's Envoy plugin tells it to Rego, so that existing policies work unchanged.

use countersign_policy::{Caller, percent_decoded};
use serde_json::{Map, Value, json};

use crate::Question;
use crate::grpc::{headers, principal, scheme, with_query};

/// `input`: the attributes under their JSON names, and what the plugin derives from them. Fields that are not
/// set are absent, as there.
pub(crate) fn input(q: &Question<'_>) -> Value {
    let a = &q.attributes;
    let peer = |ip: Option<std::net::IpAddr>, port: Option<u16>, principal: &str| {
        let mut out = Map::new();
        if let Some(ip) = ip {
            let mut socket = json!({"address": ip.to_string()});
            if let Some(port) = port {
                socket["portValue"] = port.into();
            }
            out.insert("address".into(), json!({"socketAddress": socket}));
        }
        if !principal.is_empty() {
            out.insert("principal".into(), principal.into());
        }
        Value::Object(out)
    };
    let caller = principal(a.caller);
    let mut request = json!({"time": {"seconds": q.now.as_secs(), "nanos": q.now.subsec_nanos()}});
    let mut out = json!({
        "version": {"ext_authz": "v3", "encoding": "protojson"},
        "parsed_body": null,
        "truncated_body": false,
    });
    if let Some(http) = a.http {
        request["http"] = json!({
            "id": q.id,
            "method": http.method,
            "headers": headers(q),
            "path": with_query(http.path, q.query),
            "host": http.host,
            "scheme": scheme(q),
            "protocol": q.protocol,
            "size": -1,
        });
        let path: Vec<String> =
            http.path.trim_start_matches('/').split('/').map(percent_decoded).collect();
        out["parsed_path"] = path.into();
        out["parsed_query"] = parsed_query(q.query);
    }
    let mut attributes = json!({
        "source": peer(a.source_ip, Some(q.source_port), &caller),
        "destination": peer(a.destination_ip, a.destination_port, q.own_id),
        "request": request,
    });
    if let Some(sni) = a.sni {
        attributes["tlsSession"] = json!({"sni": sni});
    }
    out["attributes"] = attributes;
    if !matches!(a.caller, Caller::Nobody) {
        out["source_principal"] = caller.into();
    }
    out
}

fn parsed_query(query: &str) -> Value {
    let mut out: Map<String, Value> = Map::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let form = |t: &str| percent_decoded(&t.replace('+', " "));
        let list = out.entry(form(name)).or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.push(form(value).into());
        }
    }
    Value::Object(out)
}
