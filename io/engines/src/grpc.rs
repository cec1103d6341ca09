//! Envoy's ext_authz over gRPC.

use std::collections::HashMap;

use countersign_policy::{Answer, Caller, Edits, Target};
use countersign_wire::dial;
use countersign_wire::proto::envoy::config::core::v3 as core;
use countersign_wire::proto::envoy::service::auth::v3 as auth;
use countersign_wire::rpc::{Channel, Timestamp};

use crate::answer;
use crate::{Outcome, Question};

/// Largest answer in bytes.
const MAX_ANSWER: usize = 1 << 20;

#[derive(Clone)]
pub(crate) struct Client(auth::authorization_client::AuthorizationClient<Channel>);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("grpc::Client")
    }
}

impl Client {
    pub(crate) fn new(target: &Target) -> Self {
        let channel = match target {
            Target::Unix(path) => dial::unix(path.clone()),
            Target::Tcp(host, port) => dial::tcp(host.clone(), *port),
        };
        let client = auth::authorization_client::AuthorizationClient::new(channel);
        Self(client.max_decoding_message_size(MAX_ANSWER))
    }

    pub(crate) async fn check(&self, question: &Question<'_>) -> Outcome {
        let request = auth::CheckRequest { attributes: Some(attributes(question)) };
        let answer = self.0.clone().check(request).await;
        let answer = answer
            .map_err(|status| format!("{:?}: {}", status.code(), status.message()))?
            .into_inner();
        read(answer)
    }
}

/// The question in Envoy's words.
fn attributes(q: &Question<'_>) -> auth::AttributeContext {
    use auth::attribute_context::{HttpRequest, Peer, Request, TlsSession};
    let a = &q.attributes;
    let address = |ip: Option<std::net::IpAddr>, port: u16| {
        let socket = core::SocketAddress {
            protocol: 0,
            address: ip?.to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
        };
        Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) })
    };
    let http = a.http.map(|h| {
        let path = with_query(h.path, q.query);
        HttpRequest {
            id: q.id.to_owned(),
            method: h.method.to_owned(),
            headers: headers(q),
            path,
            host: h.host.to_owned(),
            scheme: scheme(q).to_owned(),
            size: -1,
            protocol: q.protocol.to_owned(),
            ..HttpRequest::default()
        }
    });
    auth::AttributeContext {
        source: Some(Peer {
            address: address(a.source_ip, q.source_port),
            principal: principal(a.caller),
            ..Peer::default()
        }),
        destination: Some(Peer {
            address: address(a.destination_ip, a.destination_port.unwrap_or(0)),
            principal: q.own_id.to_owned(),
            ..Peer::default()
        }),
        request: Some(Request {
            time: Some(Timestamp {
                seconds: i64::try_from(q.now.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(q.now.subsec_nanos()).unwrap_or(0),
            }),
            http,
        }),
        tls_session: a.sni.map(|sni| TlsSession { sni: sni.to_owned() }),
        ..auth::AttributeContext::default()
    }
}

pub(crate) fn principal(caller: Caller<'_>) -> String {
    match caller {
        Caller::Identity(id) => id.to_string(),
        Caller::Names(names) => names.first().cloned().unwrap_or_default(),
        Caller::Legacy(name) => name.to_owned(),
        Caller::Nobody => String::new(),
    }
}

pub(crate) fn scheme(q: &Question<'_>) -> &'static str {
    if matches!(q.attributes.caller, Caller::Nobody) { "http" } else { "https" }
}

pub(crate) fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// Header fields as Envoy tells them: in lower case, repeated ones joined, pseudo-header fields among them.
pub(crate) fn headers(q: &Question<'_>) -> HashMap<String, String> {
    let mut out: HashMap<String, String> = HashMap::new();
    let Some(http) = q.attributes.http else { return out };
    for (name, value) in http.headers {
        out.entry(name.to_ascii_lowercase())
            .and_modify(|v| {
                v.push(',');
                v.push_str(value);
            })
            .or_insert_with(|| (*value).to_owned());
    }
    out.remove("host");
    out.insert(":authority".into(), http.host.to_owned());
    out.insert(":method".into(), http.method.to_owned());
    out.insert(":path".into(), with_query(http.path, q.query));
    out.insert(":scheme".into(), scheme(q).to_owned());
    out
}

fn read(answer: auth::CheckResponse) -> Outcome {
    use auth::check_response::HttpResponse;
    // Without a status it is not an answer.
    let status = answer.status.ok_or("its answer has no status")?;
    if status.code == 0 {
        let mut edits = Edits::default();
        match answer.http_response {
            Some(HttpResponse::OkResponse(ok)) => {
                for option in &ok.headers {
                    let Some(header) = &option.header else { continue };
                    let append = option.append.unwrap_or(false);
                    answer::edit(&mut edits, &header.key, value(header)?, append)?;
                }
                for name in &ok.headers_to_remove {
                    answer::remove(&mut edits, name)?;
                }
                edits.remove_parameters = ok.query_parameters_to_remove;
            }
            // It says both yes and no.
            Some(HttpResponse::DeniedResponse(_)) => {
                return Err("its answer allows and denies at once".into());
            }
            None => {}
        }
        return Ok((Answer::Allowed, edits, None));
    }
    let refusal = match &answer.http_response {
        Some(HttpResponse::DeniedResponse(d)) => {
            let status = d.status.as_ref().map_or(0, |s| s.code);
            let fields = d.headers.iter().filter_map(|o| o.header.as_ref());
            let fields = fields.filter_map(|h| Some((h.key.as_str(), value(h).ok()?)));
            Some(answer::refusal(status.into(), fields, d.body.as_bytes()))
        }
        _ => None,
    };
    let why = match status.message.as_str() {
        "" => format!("status {}", status.code),
        text => format!("status {}, {}", status.code, text.chars().take(200).collect::<String>()),
    };
    Ok((Answer::Denied(why), Edits::default(), refusal))
}

fn value(header: &core::HeaderValue) -> Result<&str, String> {
    if header.raw_value.is_empty() {
        return Ok(&header.value);
    }
    std::str::from_utf8(&header.raw_value)
        .map_err(|_| format!("its value for `{}` is not UTF-8", header.key.escape_default()))
}
