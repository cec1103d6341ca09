//! Findings on the wire: a status code, the catalogue's code in the metadata, and for refused agents
//! the details that tell SPIRE's agents how to recover.

use countersign_findings::{Code as Cs, Finding};
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::proto::google::rpc;
use crate::proto::spire::api::types::PermissionDeniedDetails;
pub use crate::proto::spire::api::types::permission_denied_details::Reason;

const HEADER: &str = "countersign-code";
const HINT: &str = "countersign-hint";
const DETAILS_URL: &str = "type.googleapis.com/spire.api.types.PermissionDeniedDetails";

/// The gRPC code that fits a catalogue code.
fn grpc_code(code: Cs) -> Code {
    match code {
        Cs::NoIdentityIssued | Cs::AgentBanned | Cs::AgentNotAttested | Cs::CallerNotAuthorized => {
            Code::PermissionDenied
        }
        Cs::JoinTokenInvalid
        | Cs::CsrInvalid
        | Cs::EntryInvalid
        | Cs::ConfigSyntax
        | Cs::UnknownField
        | Cs::InvalidValue
        | Cs::UnsupportedDocument
        | Cs::MalformedSpiffeId
        | Cs::JwtMalformed
        | Cs::JwtAlgorithmRefused
        | Cs::JwtKeyUnknown
        | Cs::JwtSignatureInvalid
        | Cs::JwtExpired
        | Cs::JwtAudienceMismatch => Code::InvalidArgument,
        Cs::EntryNotFound => Code::NotFound,
        Cs::EntryExists => Code::AlreadyExists,
        Cs::CallerGone => Code::Unauthenticated,
        Cs::ServerUnreachable | Cs::AgentUnreachable | Cs::StorageFailed => Code::Unavailable,
        Cs::ServiceOverloaded | Cs::TooManyConnections => Code::ResourceExhausted,
        Cs::RootOffline | Cs::AuthorityExpiring | Cs::AlreadyInitialised => {
            Code::FailedPrecondition
        }
        _ => Code::Internal,
    }
}

/// A status for a finding; the message keeps the facts, the metadata the code.
pub fn from_finding(finding: &Finding) -> Status {
    let mut status = Status::new(grpc_code(finding.code), finding.message.clone());
    if let Ok(value) = MetadataValue::try_from(finding.code.as_str()) {
        status.metadata_mut().insert(HEADER, value);
    }
    if let Ok(value) = MetadataValue::try_from(finding.hint.as_str()) {
        status.metadata_mut().insert(HINT, value);
    }
    status
}

/// A refusal of an agent, with the reason in SPIRE's details.
pub fn agent_denied(code: Cs, message: &str, reason: Reason) -> Status {
    let details = rpc::Status {
        code: Code::PermissionDenied as i32,
        message: message.to_owned(),
        details: vec![crate::rpc::pack_as(
            &PermissionDeniedDetails { reason: reason as i32 },
            DETAILS_URL,
        )],
    };
    let mut status =
        Status::with_details(Code::PermissionDenied, message, details.encode_to_vec().into());
    if let Ok(value) = MetadataValue::try_from(code.as_str()) {
        status.metadata_mut().insert(HEADER, value);
    }
    status
}

/// The reason in a refusal's details.
pub fn denied_reason(status: &Status) -> Option<Reason> {
    let details = rpc::Status::decode(status.details()).ok()?;
    let details: PermissionDeniedDetails =
        details.details.iter().find_map(|any| crate::rpc::unpack_as(any, DETAILS_URL))?;
    Reason::try_from(details.reason).ok()
}

/// The finding behind a status: the sender's code if it is one of ours, else `fallback`.
pub fn to_finding(status: &Status, fallback: Cs) -> Finding {
    let code = status
        .metadata()
        .get(HEADER)
        .and_then(|v| v.to_str().ok())
        .and_then(|text| Cs::ALL.iter().find(|c| c.as_str() == text))
        .copied()
        .unwrap_or(fallback);
    let message = if status.message().is_empty() {
        code.title().to_owned()
    } else {
        status.message().to_owned()
    };
    let finding = Finding::new(code, message);
    match status.metadata().get(HINT).and_then(|v| v.to_str().ok()) {
        Some(hint) if !hint.is_empty() => finding.hint(hint),
        _ => finding,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_and_code_survive_the_wire() {
        let status = agent_denied(Cs::AgentBanned, "agent is banned", Reason::AgentBanned);
        assert_eq!(denied_reason(&status), Some(Reason::AgentBanned));
        assert_eq!(to_finding(&status, Cs::InternalError).code, Cs::AgentBanned);
        let plain = Status::unavailable("gone");
        assert_eq!(denied_reason(&plain), None);
        assert_eq!(to_finding(&plain, Cs::ServerUnreachable).code, Cs::ServerUnreachable);
    }
}
