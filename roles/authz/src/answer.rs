//! What Envoy is told.

use countersign_findings::Finding;
use countersign_policy::Authenticated;
use countersign_wire::proto::envoy::config::core::v3 as core;
use countersign_wire::proto::envoy::service::auth::v3 as auth;
use countersign_wire::proto::google::rpc::Status;

/// `PERMISSION_DENIED` and `UNAUTHENTICATED` of gRPC.
const PERMISSION_DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

/// Go ahead, with the changes that the request's token leads to.
pub(crate) fn allowed(edits: Option<Authenticated>) -> auth::CheckResponse {
    let edits = edits.unwrap_or_default();
    let ok = auth::OkHttpResponse {
        headers: edits.add_headers.iter().map(|(n, v)| set(n, v)).collect(),
        headers_to_remove: edits
            .remove_headers
            .into_iter()
            .filter(|n| !edits.add_headers.iter().any(|(set, _)| set == n))
            .collect(),
        query_parameters_to_remove: edits.remove_parameters,
    };
    auth::CheckResponse {
        status: Some(Status::default()),
        http_response: Some(auth::check_response::HttpResponse::OkResponse(ok)),
    }
}

/// Refused: the whole reason for Envoy's log, code and slug for the client.
pub(crate) fn refused(finding: &Finding) -> auth::CheckResponse {
    let code = finding.code;
    let status = i32::from(code.http_status());
    let body = format!("{{\"code\":\"{code}\",\"reason\":\"{}\"}}\n", code.slug());
    let mut headers =
        vec![set("content-type", "application/json"), set("x-countersign-code", code.as_str())];
    if status == 401 {
        headers.push(set("www-authenticate", "Bearer error=\"invalid_token\""));
    }
    let denied =
        auth::DeniedHttpResponse { status: Some(auth::HttpStatus { code: status }), headers, body };
    auth::CheckResponse {
        status: Some(Status {
            code: if status == 401 { UNAUTHENTICATED } else { PERMISSION_DENIED },
            message: format!("[{code}] {}", finding.message),
            details: Vec::new(),
        }),
        http_response: Some(auth::check_response::HttpResponse::DeniedResponse(denied)),
    }
}

fn set(name: &str, value: &str) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }),
        append: Some(false),
        append_action: core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
    }
}
