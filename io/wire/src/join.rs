//! The join string: all that a new agent needs in one word, so that nothing has to be copied or trusted
//! on first sight. It holds the server's address, the trust domain, its roots, and a one-time token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_findings::{Code, Finding};
use countersign_identity::{Bundle, TrustDomain};
use serde::{Deserialize, Serialize};

const PREFIX: &str = "csjoin1_";
/// Longest join string in bytes.
const MAX_LEN: usize = 64 << 10;

/// A join string's contents.
#[derive(Clone)]
pub struct JoinString {
    /// `host:port` of the server API.
    pub server: String,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Its roots, DER; the server must chain to one of them.
    pub roots: Vec<Vec<u8>>,
    /// Admits one agent.
    pub token: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    server: String,
    trust_domain: String,
    roots: Vec<String>,
    token: String,
}

impl JoinString {
    /// The roots as a bundle.
    pub fn bundle(&self) -> Bundle {
        Bundle::of_x509(self.trust_domain.clone(), self.roots.iter().cloned())
    }

    /// One word without characters that a shell would touch.
    pub fn encode(&self) -> String {
        let contents = Contents {
            server: self.server.clone(),
            trust_domain: self.trust_domain.to_string(),
            roots: self.roots.iter().map(|r| URL_SAFE_NO_PAD.encode(r)).collect(),
            token: self.token.clone(),
        };
        let json = serde_json::to_vec(&contents).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// Reads a join string.
    pub fn parse(text: &str) -> Result<Self, Finding> {
        let bad = |what: String| Finding::new(Code::JoinStringMalformed, what);
        let text = text.trim();
        if text.len() > MAX_LEN {
            return Err(bad("join string is too long".into()));
        }
        let body = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| bad(format!("join string does not begin with `{PREFIX}`")))?;
        let json = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| bad("join string is cut off or altered".into()))?;
        let c: Contents = serde_json::from_slice(&json)
            .map_err(|_| bad("join string is cut off or altered".into()))?;
        let roots = c
            .roots
            .iter()
            .map(|r| URL_SAFE_NO_PAD.decode(r).map_err(|e| bad(format!("root: {e}"))))
            .collect::<Result<Vec<_>, _>>()?;
        if roots.is_empty() || c.token.is_empty() || c.server.is_empty() {
            return Err(bad("join string lacks server, root or token".into()));
        }
        Ok(Self {
            server: c.server,
            trust_domain: TrustDomain::new(&c.trust_domain).map_err(|e| bad(e.to_string()))?,
            roots,
            token: c.token,
        })
    }
}

impl std::fmt::Debug for JoinString {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinString({}, {}, token redacted)", self.server, self.trust_domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let join = JoinString {
            server: "127.0.0.1:8081".into(),
            trust_domain: TrustDomain::new("a.test").unwrap(),
            roots: vec![vec![1, 2, 3]],
            token: "secret-token".into(),
        };
        let text = join.encode();
        let again = JoinString::parse(&format!("  {text}\n")).unwrap();
        assert_eq!((again.server, again.token), (join.server.clone(), join.token.clone()));
        for damaged in ["", "x", &text[..text.len() - 5], &text[1..]] {
            let e = JoinString::parse(damaged).unwrap_err();
            assert_eq!(e.code, Code::JoinStringMalformed);
            assert!(!e.to_string().contains("secret"));
        }
        assert!(!format!("{join:?}").contains("secret-token"));
    }
}
