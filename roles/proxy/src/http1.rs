//! HTTP/1.1, read strictly: a message that two parsers could read differently is refused.

mod buffered;
mod framing;
mod head;
mod pump;
mod relay;

pub(crate) use head::{RequestHead, refusal};
pub(crate) use relay::{Exchange, IDLE, Next, serve};

/// Largest header section in bytes.
pub(crate) const MAX_HEAD: usize = 64 << 10;
/// Most header fields.
pub(crate) const MAX_FIELDS: usize = 100;

/// Whether some HTTP/1 server could read bytes as a request: a token, then a space, perhaps after empty
/// lines. Wide on purpose: what looks like HTTP is parsed strictly, and refused there, instead of being
/// relayed as bytes past the identity headers' removal. `None`: more bytes are needed to tell.
pub(crate) fn looks_like_request(bytes: &[u8]) -> Option<bool> {
    // Lenient parsers skip, and separate by, more than the standard's space (RFC 9112 section 3).
    let blank = bytes
        .iter()
        .take_while(|b| matches!(b, b'\r' | b'\n' | b' ' | b'\t' | 0x0b | 0x0c))
        .count();
    let rest = &bytes[blank..];
    let token = rest
        .iter()
        .take_while(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
        .count();
    match rest.get(token) {
        _ if token > 64 || blank > 64 => Some(true),
        // The end of a line is none of them; a CR alone is.
        Some(b'\r') => rest.get(token + 1).map(|b| *b != b'\n' && token > 0),
        Some(b' ' | b'\t' | 0x0b | 0x0c | 0x1c..=0x1f | 0x85 | 0xa0 | 0xc2) => Some(token > 0),
        Some(_) => Some(false),
        None => None,
    }
}

/// The connection preface of HTTP/2.
pub(crate) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

#[cfg(test)]
mod tests {
    use super::looks_like_request;

    #[test]
    fn whatever_a_server_could_take_for_a_request_is_one() {
        for http in [
            "GET / HTTP/1.1\r\n",
            "\r\n\r\nGET /",
            "get /",
            "X_1 /",
            "M /",
            " GET /",
            "\t\u{c}GET /",
            "GET\u{c}/",
            "GET\u{b}/",
            "GET\r/",
            "GET\u{1c}/",
            "GET\u{a0}/",
            "GET\u{85}/",
            &"A".repeat(65),
        ] {
            assert_eq!(looks_like_request(http.as_bytes()), Some(true), "{http:?}");
        }
        for other in ["\x16\x03\x01", "\0\0\0", "{\"a\":1}", "*3\r\n$3\r\nSET\r\n"] {
            assert_ne!(looks_like_request(other.as_bytes()), Some(true), "{other:?}");
        }
        assert_eq!(looks_like_request(b"GE"), None);
    }
}
