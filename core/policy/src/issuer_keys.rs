//! Keys that token issuers publish (RA-6). A document only says where; whoever runs the policies fetches them
//! and passes them in, so that deciding stays pure.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::BundleSet;
use countersign_jose::KeySet;

/// Where an issuer publishes its keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyLocation {
    /// A JWKS document is at this URL.
    Jwks(String),
    /// The issuer's own URL, from which OpenID Connect Discovery 1.0 (section 4) leads to a JWKS document.
    Discovery(String),
}

impl KeyLocation {
    /// The URL to begin with.
    pub fn url(&self) -> String {
        match self {
            KeyLocation::Jwks(url) => url.clone(),
            KeyLocation::Discovery(issuer) => {
                format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
            }
        }
    }
}

impl fmt::Display for KeyLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())
    }
}

/// One place that keys have to be fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySource {
    /// Whose keys.
    pub issuer: String,
    /// Where they are.
    pub location: KeyLocation,
    /// How long fetching them may take.
    pub timeout: Duration,
}

/// The keys known at some moment, by where they were published.
#[derive(Clone, Debug, Default)]
pub struct PublishedKeys {
    by_location: HashMap<KeyLocation, Result<Arc<KeySet>, String>>,
    bundles: Option<BundleSet>,
}

impl PublishedKeys {
    /// Notes the keys of one place, or why there are none.
    pub fn insert(&mut self, location: KeyLocation, keys: Result<Arc<KeySet>, String>) {
        self.by_location.insert(location, keys);
    }

    /// Forgets places that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&KeyLocation) -> bool) {
        self.by_location.retain(|location, _| keep(location));
    }

    /// Replaces the trust bundles with whose keys JWT-SVIDs are verified; `None` if they are not known.
    pub fn set_bundles(&mut self, bundles: Option<BundleSet>) {
        self.bundles = bundles;
    }

    /// The trust bundles, if they are known.
    pub fn bundles(&self) -> Option<&BundleSet> {
        self.bundles.as_ref()
    }

    /// The keys of one place, or why there are none.
    pub fn at(&self, location: &KeyLocation) -> Result<&Arc<KeySet>, &str> {
        match self.by_location.get(location) {
            Some(known) => known.as_ref().map_err(String::as_str),
            None => Err("they have not been fetched yet"),
        }
    }
}

/// Whether `text` is an absolute `http` or `https` URL that can be fetched as it stands, and why not.
pub fn check_url(text: &str) -> Result<(), &'static str> {
    let uri: http::Uri = text.parse().map_err(|_| "is not a URL")?;
    if !matches!(uri.scheme_str(), Some("https" | "http")) {
        return Err("is not an https URL");
    }
    let authority = uri.authority().ok_or("names no host")?;
    if authority.host().is_empty() {
        return Err("names no host");
    }
    if authority.as_str().contains('@') {
        return Err("holds a user name, which would be sent to whoever answers");
    }
    if text.contains('#') {
        return Err("holds a fragment");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for good in ["https://a.test", "https://a.test:8443/keys?x=1", "http://127.0.0.1:1/k"] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "a.test",
            "/keys",
            "ftp://a.test/",
            "https://",
            "https://u:p@a.test/",
            "https://a.test/#k",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn discovery_adds_its_path_once() {
        for issuer in ["https://a.test/realm", "https://a.test/realm/"] {
            let url = KeyLocation::Discovery(issuer.into()).url();
            assert_eq!(url, "https://a.test/realm/.well-known/openid-configuration");
        }
    }
}
