//! HTTP/1.1, read strictly: a message that two parsers could read differently is refused.

mod framing;
mod head;
mod relay;

pub(crate) use head::refusal;
pub(crate) use relay::{Exchange, Next, serve};

/// Largest header section in bytes.
pub(crate) const MAX_HEAD: usize = 64 << 10;
/// Most header fields.
pub(crate) const MAX_FIELDS: usize = 100;

/// Whether bytes begin like an HTTP/1 request: a token of capital letters, then a space. `None`: more
/// bytes are needed to tell.
pub(crate) fn looks_like_request(bytes: &[u8]) -> Option<bool> {
    let letters = bytes.iter().take_while(|b| b.is_ascii_uppercase() || **b == b'-').count();
    match bytes.get(letters) {
        _ if letters > 16 => Some(false),
        Some(b' ') => Some(letters >= 3),
        Some(_) => Some(false),
        None => None,
    }
}

/// The connection preface of HTTP/2.
pub(crate) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0";
