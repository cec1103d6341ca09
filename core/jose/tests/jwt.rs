//! JWT-SVID sections on real tokens, and the public JWS vectors.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::{Bundle, BundleSet, JwtAuthority, SpiffeId, TrustDomain, UnixTime};
use countersign_jose::{
    JwtError, SigningRequest, bundle_from_jwks, bundle_to_jwks, jwt_keys_to_jwks, validate,
};
use countersign_keys::{KeyAlgorithm, PrivateKey, Signer};
use serde_json::{Value, json};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

struct Issuer {
    key: PrivateKey,
    bundles: BundleSet,
}

fn issuer() -> Issuer {
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let mut bundle = Bundle::new(TrustDomain::new("corp.test").unwrap());
    bundle.jwt_authorities.push(JwtAuthority {
        key_id: "k1".into(),
        public_key: key.public_key_spki().to_vec(),
        expires_at: Some(NOW + Duration::from_secs(3600)),
        tainted: false,
    });
    Issuer { key, bundles: BundleSet::collect([bundle]).unwrap() }
}

impl Issuer {
    fn raw(&self, header: &Value, claims: &Value) -> String {
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let input = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign_jws(input.as_bytes()).unwrap().unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn check(&self, token: &str) -> Result<String, JwtError> {
        validate(token, "reports", &self.bundles, NOW).map(|s| s.id.to_string())
    }

    fn check_claims(&self, claims: &Value) -> Result<String, JwtError> {
        self.check(&self.raw(&header(), claims))
    }

    fn check_header(&self, header: &Value) -> Result<String, JwtError> {
        self.check(&self.raw(header, &claims()))
    }
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "k1", "typ": "JWT"})
}

fn claims() -> Value {
    json!({"sub": "spiffe://corp.test/web", "aud": ["reports"], "exp": NOW.secs() + 60})
}

fn with(mut base: Value, name: &str, value: Value) -> Value {
    base[name] = value;
    base
}

fn without(mut base: Value, name: &str) -> Value {
    base.as_object_mut().unwrap().remove(name);
    base
}

#[test]
fn issued_tokens_verify() {
    let i = issuer();
    let id = SpiffeId::parse("spiffe://corp.test/web").unwrap();
    let end = NOW + Duration::from_secs(60);
    let audience = ["reports".to_owned(), "other".to_owned()];
    let request = SigningRequest::new(&id, &audience, NOW, end, "k1", "ES256").unwrap();
    let token = request.assemble(&i.key.sign_jws(request.bytes()).unwrap().unwrap());
    let svid = validate(&token, "other", &i.bundles, NOW).unwrap();
    assert_eq!((svid.id, svid.expires_at), (id.clone(), end));
    assert!(SigningRequest::new(&id, &[], NOW, end, "k1", "ES256").is_err());
}

#[test]
fn jwt_svid_1_compact_serialization_only() {
    let i = issuer();
    let good = i.raw(&header(), &claims());
    assert_eq!(i.check(&good).unwrap(), "spiffe://corp.test/web");
    for bad in ["", "a.b", &format!("{good}.x"), "{}", "..", &"a".repeat(20_000)] {
        assert!(matches!(i.check(bad), Err(JwtError::Malformed(_))), "{bad:.40}");
    }
}

#[test]
fn jwt_svid_2_only_three_headers() {
    let i = issuer();
    for extra in ["jku", "x5c", "jwk", "crit", "b64", "zip"] {
        let result = i.check_header(&with(header(), extra, json!("x")));
        assert!(matches!(result, Err(JwtError::Malformed(_))), "{extra}");
    }
}

#[test]
fn jwt_svid_2_1_algorithms() {
    let i = issuer();
    for alg in ["none", "HS256", "EdDSA", "es256", "ES256K", ""] {
        let result = i.check_header(&with(header(), "alg", json!(alg)));
        assert!(matches!(result, Err(JwtError::Algorithm(_))), "{alg}");
    }
}

#[test]
fn jwt_svid_2_3_typ() {
    let i = issuer();
    assert!(i.check_header(&with(header(), "typ", json!("JOSE"))).is_ok());
    assert!(i.check_header(&without(header(), "typ")).is_ok());
    assert!(i.check_header(&with(header(), "typ", json!("at+jwt"))).is_err());
}

#[test]
fn jwt_svid_3_1_subject_is_a_spiffe_id() {
    let i = issuer();
    for sub in [json!("web"), json!("spiffe://corp.test"), json!(""), json!(1)] {
        assert!(i.check_claims(&with(claims(), "sub", sub)).is_err());
    }
    assert!(i.check_claims(&without(claims(), "sub")).is_err());
}

#[test]
fn jwt_svid_3_2_audience() {
    let i = issuer();
    let with_aud = |aud: Value| i.check_claims(&with(claims(), "aud", aud));
    assert!(matches!(with_aud(json!(["others"])), Err(JwtError::Audience { .. })));
    assert!(i.check_claims(&without(claims(), "aud")).is_err());
    assert!(with_aud(json!([])).is_err());
    assert!(with_aud(json!("reports")).is_ok());
    assert!(with_aud(json!(["reports", 1])).is_err());
}

#[test]
fn jwt_svid_3_3_expiry() {
    let i = issuer();
    let at = |exp: i64| i.check_claims(&with(claims(), "exp", json!(exp)));
    assert!(matches!(at(NOW.secs()), Err(JwtError::Expired(_))), "exp == now has passed");
    assert!(at(NOW.secs() + 1).is_ok());
    assert!(i.check_claims(&without(claims(), "exp")).is_err());
    let future = i.check_claims(&with(claims(), "nbf", json!(NOW.secs() + 3600)));
    assert!(matches!(future, Err(JwtError::NotYetValid(_))));
}

#[test]
fn jwt_svid_6_key_of_the_subjects_trust_domain() {
    let i = issuer();
    let foreign = i.check_claims(&with(claims(), "sub", json!("spiffe://other.test/web")));
    assert!(matches!(foreign, Err(JwtError::UnknownKey { .. })));
    let unknown = i.check_header(&with(header(), "kid", json!("k2")));
    assert!(matches!(unknown, Err(JwtError::UnknownKey { .. })));
    assert!(i.check_header(&without(header(), "kid")).is_err());
    assert_eq!(issuer().check(&i.raw(&header(), &claims())), Err(JwtError::Signature));
    let late = NOW + Duration::from_secs(3600);
    let token = i.raw(&header(), &with(claims(), "exp", json!(late.secs() + 60)));
    assert!(validate(&token, "reports", &i.bundles, late).is_err(), "the key itself has ended");
}

/// A bundle with an X.509 root and a JWT key, and its document.
fn bundle_and_document() -> (countersign_identity::Bundle, Value) {
    let i = issuer();
    let td = TrustDomain::new("corp.test").unwrap();
    let mut bundle = (**i.bundles.bundle(&td).unwrap()).clone();
    bundle.x509_authorities =
        countersign_testkit::TestCa::new("corp.test", NOW).bundle().x509_authorities;
    bundle.sequence = 7;
    bundle.refresh_hint = Some(Duration::from_secs(300));
    bundle.jwt_authorities[0].expires_at = None;
    let document = bundle_to_jwks(&bundle).unwrap();
    (bundle, document)
}

fn read(document: &Value) -> Result<countersign_identity::Bundle, countersign_jose::JwksError> {
    bundle_from_jwks(&TrustDomain::new("corp.test").unwrap(), document.to_string().as_bytes())
}

#[test]
fn trust_domain_and_bundle_4_jwks() {
    let (bundle, document) = bundle_and_document();
    assert_eq!(read(&document).unwrap(), bundle);
    for garbage in ["", "[]", "{", "{\"keys\": 1}", "{\"keys\": [1]}"] {
        let td = TrustDomain::new("corp.test").unwrap();
        assert!(bundle_from_jwks(&td, garbage.as_bytes()).is_err(), "{garbage}");
    }
}

#[test]
fn trust_domain_and_bundle_4_1_1_sequence() {
    let (_, document) = bundle_and_document();
    assert_eq!(document["spiffe_sequence"], 7);
    let without = without(document, "spiffe_sequence");
    assert_eq!(read(&without).unwrap().sequence, 0);
}

#[test]
fn trust_domain_and_bundle_4_1_2_refresh_hint() {
    let (_, document) = bundle_and_document();
    assert_eq!(document["spiffe_refresh_hint"], 300, "whole seconds");
    assert_eq!(read(&without(document, "spiffe_refresh_hint")).unwrap().refresh_hint, None);
}

#[test]
fn trust_domain_and_bundle_4_1_3_keys_must_be_there_and_may_be_empty() {
    assert!(read(&json!({})).is_err());
    let empty = read(&json!({"keys": []})).unwrap();
    assert!(empty.x509_authorities.is_empty() && empty.jwt_authorities.is_empty());
}

#[test]
fn trust_domain_and_bundle_4_2_unknown_kinds_and_uses_are_ignored() {
    let (_, document) = bundle_and_document();
    let key = document["keys"][0].clone();
    for other in [
        json!({"kty": "XX", "use": "new-use"}),
        with(key.clone(), "use", json!("X509-SVID")),
        without(key, "use"),
    ] {
        let read = read(&json!({"keys": [other.clone()]})).unwrap();
        assert!(read.x509_authorities.is_empty() && read.jwt_authorities.is_empty(), "{other}");
    }
}

#[test]
fn x509_svid_6_1_bundle_entries() {
    let (_, document) = bundle_and_document();
    let key = &document["keys"][0];
    assert_eq!(key["use"], "x509-svid");
    assert!(key.get("kid").is_none());
    assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
}

#[test]
fn x509_svid_6_2_reading_entries() {
    let (bundle, document) = bundle_and_document();
    let key = document["keys"][0].clone();
    let only = |key: Value| read(&json!({"keys": [key]})).unwrap().x509_authorities;
    assert!(only(without(key.clone(), "x5c")).is_empty(), "no x5c: ignored");
    assert!(only(with(key.clone(), "x5c", json!([]))).is_empty(), "empty x5c: ignored");
    let mut several = key["x5c"].as_array().unwrap().clone();
    several.push(json!("AAAA"));
    assert_eq!(only(with(key, "x5c", several.into())), bundle.x509_authorities, "the first counts");
}

#[test]
fn jwt_svid_6_1_keys_have_an_id() {
    let (_, document) = bundle_and_document();
    let key = document["keys"][1].clone();
    assert_eq!(key["use"], "jwt-svid");
    assert_eq!(key["kid"], "k1");
    assert!(read(&json!({"keys": [without(key, "kid")]})).is_err());
}

#[test]
fn jwt_svid_6_2_only_keys_for_that_use_count() {
    let (bundle, document) = bundle_and_document();
    let mut jwt = document["keys"][1].clone();
    assert_eq!(read(&json!({"keys": [jwt.clone()]})).unwrap().jwt_authorities.len(), 1);
    jwt["use"] = json!("x509-svid");
    assert!(read(&json!({"keys": [jwt]})).unwrap().jwt_authorities.is_empty());
    // Workload API §6.2.2: what workloads get holds JWT keys and nothing else.
    let told: Value = serde_json::from_slice(&jwt_keys_to_jwks(&bundle).unwrap()).unwrap();
    let uses: Vec<&Value> = told["keys"].as_array().unwrap().iter().map(|k| &k["use"]).collect();
    assert_eq!(uses, ["jwt-svid"]);
}

/// A signature that verifies is still no SVID: none of the vectors' payloads is one, and HMAC is refused
/// whatever the vector says. So nothing here may be accepted.
#[test]
fn wycheproof() {
    let dir = std::env::var("COUNTERSIGN_VECTORS").map_or_else(
        |_| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"),
        Into::into,
    );
    let path = dir.join("wycheproof-json_web_signature_test.json");
    let Ok(bytes) = std::fs::read(&path) else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is missing", path.display());
        eprintln!("SKIPPED: {} is missing", path.display());
        return;
    };
    let doc: Value = serde_json::from_slice(&bytes).unwrap();
    let mut n = 0;
    for group in doc["testGroups"].as_array().unwrap() {
        let key = if group["public"].is_null() { &group["private"] } else { &group["public"] };
        let jwk = with(key.clone(), "use", json!("jwt-svid"));
        let td = TrustDomain::new("corp.test").unwrap();
        let bundle = bundle_from_jwks(&td, json!({"keys": [jwk]}).to_string().as_bytes());
        let bundles = BundleSet::collect(bundle).unwrap();
        for test in group["tests"].as_array().unwrap() {
            let Some(token) = test["jws"].as_str() else { continue };
            n += 1;
            assert!(validate(token, "a", &bundles, NOW).is_err(), "{}", test["comment"]);
        }
    }
    assert!(n > 300, "{n} vectors");
}
