//! PEM (RFC 7468) with places: an error names the line.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// One PEM block.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    /// The label between `BEGIN ` and the dashes.
    pub label: String,
    /// Decoded contents.
    pub der: Vec<u8>,
    /// Line of its `BEGIN`, from 1.
    pub line: usize,
}

/// Why text is not PEM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct PemError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

/// Largest input in bytes; real bundles are far below it.
pub const MAX_INPUT: usize = 4 << 20;

/// Splits and decodes every block. Text between blocks is allowed, as tools write it there; no block
/// at all is an error.
pub fn parse(text: &[u8]) -> Result<Vec<Block>, PemError> {
    let err = |line: usize, what: &str| PemError { line, what: what.to_owned() };
    if text.len() > MAX_INPUT {
        return Err(err(1, "more than 4 MiB"));
    }
    let text = std::str::from_utf8(text).map_err(|e| {
        let line = text[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        err(line, "not text")
    })?;
    let mut blocks = Vec::new();
    let mut open: Option<(String, usize, String)> = None;
    for (i, raw) in text.lines().enumerate() {
        let (line, n) = (raw.trim(), i + 1);
        if let Some(label) = boundary(line, "-----BEGIN ") {
            if let Some((label, at, _)) = open {
                return Err(err(n, &format!("`BEGIN {label}` of line {at} has no end")));
            }
            open = Some((label.to_owned(), n, String::new()));
        } else if let Some(label) = boundary(line, "-----END ") {
            let Some((begun, at, body)) = open.take() else {
                return Err(err(n, &format!("`END {label}` without a beginning")));
            };
            if begun != label {
                return Err(err(n, &format!("`BEGIN {begun}` of line {at} ends as `{label}`")));
            }
            let der = STANDARD
                .decode(body)
                .map_err(|e| err(at, &format!("`{begun}` is not valid base64: {e}")))?;
            blocks.push(Block { label: begun, der, line: at });
        } else if let Some((_, _, body)) = &mut open {
            if !line.contains(':') {
                body.push_str(line);
            }
        } else if line.starts_with("-----") {
            return Err(err(n, "a line of dashes that is neither BEGIN nor END"));
        }
    }
    if let Some((label, at, _)) = open {
        return Err(err(at, &format!("`BEGIN {label}` has no end")));
    }
    if blocks.is_empty() {
        return Err(err(1, "no PEM block found"));
    }
    Ok(blocks)
}

fn boundary<'a>(line: &'a str, prefix: &str) -> Option<&'a str> {
    line.strip_prefix(prefix)?.strip_suffix("-----")
}

/// The certificates in `text`, in order. Other blocks are skipped; none at all is an error.
pub fn certificates(text: &[u8]) -> Result<Vec<Vec<u8>>, PemError> {
    let certs: Vec<Vec<u8>> =
        parse(text)?.into_iter().filter(|b| b.label == "CERTIFICATE").map(|b| b.der).collect();
    if certs.is_empty() {
        return Err(PemError { line: 1, what: "no `CERTIFICATE` block found".into() });
    }
    Ok(certs)
}

/// Splits concatenated DER values, as the Workload API carries chains and bundles.
pub fn split_der(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    use der::{Decode, Reader};
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let mut reader = der::SliceReader::new(bytes).ok()?;
        let header = der::Header::decode(&mut reader).ok()?;
        let start = u32::from(reader.position()) as usize;
        let total = start.checked_add(u32::from(header.length()) as usize)?;
        let (one, rest) = bytes.split_at_checked(total)?;
        der::Any::from_der(one).ok()?;
        out.push(one.to_vec());
        bytes = rest;
    }
    Some(out)
}

/// Encodes one block, 64 columns.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for chunk in body.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(chunk).unwrap_or_default());
        out.push('\n');
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({}, line {}, {} bytes)", self.label, self.line, self.der.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_with_text_between() {
        let text = format!("subject: x\n{}\nmore\n{}", encode("A", b"one"), encode("B", &[0; 100]));
        let blocks = parse(text.as_bytes()).unwrap();
        assert_eq!(blocks.len(), 2);
        assert_eq!(blocks[0].der, b"one");
        assert_eq!(blocks[1].line, 7);
    }

    #[test]
    fn errors_name_the_line() {
        let cases: [(&str, usize); 6] = [
            ("", 1),
            ("hello\n", 1),
            ("x\n-----BEGIN A-----\nAAAA\n", 2),
            ("-----END A-----\n", 1),
            ("-----BEGIN A-----\n!!!!\n-----END A-----\n", 1),
            ("-----BEGIN A-----\n-----END B-----\n", 2),
        ];
        for (text, line) in cases {
            assert_eq!(parse(text.as_bytes()).unwrap_err().line, line, "{text:?}");
        }
    }
}
