//! RequestAuthentication (RA-7).

use std::sync::Arc;
use std::time::Duration;

use countersign_findings::Finding;
use countersign_identity::TrustDomain;
use countersign_jose::KeySet;

use super::place::Place;
use super::read::{check_version, selector, targets};
use super::shapes::{Doc, JwtRuleSpec, RequestSpec};
use crate::issuer_keys::{KeyLocation, check_url};
use crate::request_auth::{JwtRule, Keys, Location, RequestAuthentication};

pub(super) fn read(
    doc: Doc<RequestSpec>,
    origin: &str,
    line: usize,
) -> Result<RequestAuthentication, Finding> {
    let place =
        Place { origin, line, title: format!("RequestAuthentication `{}`", doc.metadata.name) };
    check_version(&["v1", "v1beta1"], &doc.api_version, &place)?;
    let spec = doc.spec.unwrap_or_default();
    let for_gateways = targets(
        spec.target_ref.as_ref(),
        spec.target_refs.as_deref(),
        spec.selector.is_some(),
        &place,
    )?;
    let mut rules = Vec::new();
    for (i, rule) in spec.jwt_rules.into_iter().enumerate() {
        let at = format!("spec.jwtRules[{i}]");
        let rule = rule.ok_or_else(|| place.invalid(&at, "is null"))?;
        rules.push(Arc::new(jwt_rule(rule, &at, &place)?));
    }
    Ok(RequestAuthentication {
        name: doc.metadata.name,
        namespace: doc.metadata.namespace.unwrap_or_else(|| "default".into()),
        selector: selector(spec.selector, &place)?,
        for_gateways,
        rules,
    })
}

/// Fields that say where a message ends, where it goes, or who sent it: nobody's token may set or hide them.
const RESERVED: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-countersign-code",
    "x-forwarded-client-cert",
];

/// The name of a header field that may be used, in lower case.
pub(crate) fn header_name(name: &str) -> Option<String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let lower = name.to_ascii_lowercase();
    let good = !name.is_empty()
        && name.bytes().all(token)
        && !RESERVED.contains(&lower.replace('_', "-").as_str());
    good.then_some(lower)
}

fn jwt_rule(spec: JwtRuleSpec, at: &str, place: &Place<'_>) -> Result<JwtRule, Finding> {
    let bad = |field: &str, what: &str| place.invalid(&format!("{at}.{field}"), what);
    if spec.issuer.is_empty() {
        return Err(bad("issuer", "is missing"));
    }
    for (field, list) in [
        ("audiences", &spec.audiences),
        ("fromParams", &spec.from_params),
        ("fromCookies", &spec.from_cookies),
        ("spaceDelimitedClaims", &spec.space_delimited_claims),
    ] {
        if list.iter().any(String::is_empty) {
            return Err(bad(field, "holds an empty value"));
        }
    }
    let timeout = match spec.timeout.as_deref() {
        None => FETCH_TIMEOUT,
        Some(text) => {
            duration(text).ok_or_else(|| bad("timeout", "is not a duration like 5s, up to 60s"))?
        }
    };
    let keys = match (&spec.jwks, spec.jwks_uri) {
        (Some(_), Some(_)) => return Err(bad("jwks", "cannot stand beside jwksUri")),
        (Some(text), None) => {
            let keys = KeySet::parse(text.as_bytes()).map_err(|e| bad("jwks", &e.to_string()))?;
            Keys::Inline(Arc::new(keys))
        }
        (None, Some(url)) => {
            check_url(&url).map_err(|e| bad("jwksUri", e))?;
            Keys::Published(KeyLocation::Jwks(url), timeout)
        }
        // A trust domain's own tokens, JWT-SVIDs.
        (None, None) if spec.issuer.starts_with("spiffe://") => {
            let domain = spec.issuer.strip_prefix("spiffe://").unwrap_or_default();
            let domain = TrustDomain::new(domain)
                .map_err(|e| bad("issuer", &format!("is no trust domain: {e}")))?;
            if spec.audiences.is_empty() {
                return Err(bad("audiences", "is missing").hint(
                    "a JWT-SVID counts only for its audience (JWT-SVID section 4.3): name this service's",
                ));
            }
            Keys::TrustDomain(domain)
        }
        // Without keys every token would be refused, which nobody would understand.
        (None, None) if check_url(&spec.issuer).is_err() => {
            return Err(bad("jwks", "is missing").hint(
                "give the issuer's keys with `jwks` or `jwksUri`: they cannot be discovered, because `issuer` is no URL",
            ));
        }
        (None, None) => Keys::Published(KeyLocation::Discovery(spec.issuer.clone()), timeout),
    };
    let mut locations = Vec::new();
    for (i, h) in spec.from_headers.iter().enumerate() {
        let name = header_name(&h.name).ok_or_else(|| {
            bad(&format!("fromHeaders[{i}].name"), "is no name of a header field that may be used")
        })?;
        locations.push(Location::Header { name, prefix: h.prefix.clone() });
    }
    locations.extend(spec.from_params.into_iter().map(Location::Parameter));
    locations.extend(spec.from_cookies.into_iter().map(Location::Cookie));
    if locations.is_empty() {
        let bearer = "Bearer ".to_owned();
        locations.push(Location::Header { name: "authorization".into(), prefix: bearer });
        locations.push(Location::Parameter("access_token".into()));
    }
    let payload_header = match &spec.output_payload_to_header {
        None => None,
        Some(name) => Some(header_name(name).ok_or_else(|| {
            bad("outputPayloadToHeader", "is no name of a header field that may be used")
        })?),
    };
    let mut claim_headers = Vec::new();
    for (i, c) in spec.output_claim_to_headers.iter().enumerate() {
        let field = format!("outputClaimToHeaders[{i}]");
        let c = c.as_ref().ok_or_else(|| bad(&field, "is null"))?;
        let name = header_name(&c.header).ok_or_else(|| {
            bad(&format!("{field}.header"), "is no name of a header field that may be used")
        })?;
        if c.claim.is_empty() {
            return Err(bad(&format!("{field}.claim"), "is empty"));
        }
        claim_headers.push((name, c.claim.split('.').map(str::to_owned).collect()));
    }
    let required = match spec.presence.as_deref() {
        None | Some("OPTIONAL" | "UNSPECIFIED" | "PRESENCE_UNSPECIFIED") => false,
        Some("REQUIRED") => true,
        Some(_) => return Err(bad("presence", "must be REQUIRED or OPTIONAL")),
    };
    Ok(JwtRule {
        issuer: spec.issuer,
        audiences: spec.audiences,
        keys,
        locations,
        forward: spec.forward_original_token,
        payload_header,
        claim_headers,
        space_delimited: spec.space_delimited_claims,
        required,
    })
}

/// Istio's default.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// More would only keep requests waiting.
const MAX_FETCH_TIMEOUT: Duration = Duration::from_secs(60);

fn duration(text: &str) -> Option<Duration> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[number.len()..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let seconds = number.parse::<f64>().ok()? * unit;
    Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero() && *d <= MAX_FETCH_TIMEOUT)
}
