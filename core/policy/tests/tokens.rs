//! RequestAuthentication by its rules' ids, on tokens that are really signed.

#![allow(clippy::unwrap_used)]
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_findings::Code;
use countersign_identity::{BundleSet, SpiffeId, UnixTime};
use countersign_policy::{
    Attributes, Authenticated, Caller, HttpRequest, Mesh, PolicySet, PublishedKeys, Workload, parse,
};
use countersign_testkit::TokenIssuer;
use serde_json::{Value, json};
use std::sync::Arc;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

struct Issuer(TokenIssuer);

impl Issuer {
    fn new(name: &'static str) -> Self {
        Self(TokenIssuer::new(name))
    }

    fn jwks(&self) -> String {
        self.0.jwks()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        self.0.sign(header, claims)
    }

    fn token(&self, extra: &Value) -> String {
        self.0.token(NOW, extra)
    }

    /// A rule with its issuer, keys, and whatever else.
    fn rule(&self, more: &str) -> String {
        format!("{{issuer: '{}', jwks: '{}'{more}}}", self.0.name, self.jwks())
    }
}

fn document(rules: &[String]) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: jwt, namespace: shop}}\nspec: {{jwtRules: [{}]}}\n",
        rules.join(", ")
    )
}

fn set(text: &str) -> PolicySet {
    let workload = Workload {
        trust_domain: "corp.test".parse().unwrap(),
        namespace: "shop".into(),
        labels: Some([("app".to_owned(), "api".to_owned())].into()),
        mesh: Mesh::default(),
    };
    PolicySet::compile(&parse(text, "t").unwrap(), &workload, 1)
}

fn ask(set: &PolicySet, headers: &[(&str, &str)], query: &str) -> Result<Authenticated, Code> {
    let http = HttpRequest { method: "GET", host: "api", path: "/", headers };
    set.authenticate(&http, query, NOW, &PublishedKeys::default()).map_err(|e| e.finding.code)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[test]
fn ra_1_selected_documents_count_together() {
    let (a, b) = (Issuer::new("a"), Issuer::new("b"));
    let root = document(&[b.rule("")]).replace("namespace: shop", "namespace: istio-system");
    let other = document(&[Issuer::new("c").rule("")])
        .replace("spec: {", "spec: {selector: {matchLabels: {app: web}}, ");
    let set = set(&format!("{}---\n{root}---\n{other}", document(&[a.rule("")])));
    for issuer in [&a, &b] {
        let value = bearer(&issuer.token(&json!({})));
        let got = ask(&set, &[("Authorization", &value)], "").unwrap();
        assert_eq!(got.token.unwrap().issuer(), issuer.0.name);
    }
}

#[test]
fn ra_2_no_token_passes_without_identity_and_a_bad_one_is_refused() {
    let issuer = Issuer::new("idp");
    let set = set(&document(&[issuer.rule("")]));
    assert!(set.expects_tokens());
    assert_eq!(ask(&set, &[], "").unwrap().token, None);
    let good = issuer.token(&json!({}));
    assert!(ask(&set, &[("authorization", &bearer(&good))], "").unwrap().token.is_some());
    let forged = Issuer::new("idp").token(&json!({}));
    let refused = |token: &str| ask(&set, &[("authorization", &bearer(token))], "").unwrap_err();
    assert_eq!(refused(&forged), Code::JwtSignatureInvalid);
    assert_eq!(refused("x"), Code::JwtMalformed);
    assert_eq!(refused(&issuer.token(&json!({"exp": NOW.secs() - 61}))), Code::JwtExpired);
    assert_eq!(refused(&issuer.token(&json!({"nbf": NOW.secs() + 61}))), Code::JwtMalformed);
    assert_eq!(refused(&issuer.token(&json!({"iss": "other"}))), Code::JwtKeyUnknown);
    let claims = json!({"iss": "idp", "sub": "alice"});
    for (header, code) in [
        (json!({"alg": "none"}), Code::JwtAlgorithmRefused),
        (json!({"alg": "HS256"}), Code::JwtAlgorithmRefused),
        (json!({"alg": "RS256"}), Code::JwtKeyUnknown),
        (json!({"alg": "ES256", "kid": "k2"}), Code::JwtKeyUnknown),
        (json!({"alg": "ES256", "crit": ["b64"]}), Code::JwtMalformed),
        (json!({"kid": "k1"}), Code::JwtMalformed),
    ] {
        assert_eq!(refused(&issuer.sign(&header, &claims)), code, "{header}");
    }
}

#[test]
fn ra_3_a_token_that_is_good_for_one_rule_passes() {
    let (a, b) = (Issuer::new("a"), Issuer::new("b"));
    let set = set(&document(&[a.rule(""), b.rule("")]));
    let value = bearer(&b.token(&json!({})));
    assert!(ask(&set, &[("authorization", &value)], "").is_ok());
    let neither = bearer(&Issuer::new("c").token(&json!({})));
    assert!(ask(&set, &[("authorization", &neither)], "").is_err());
}

#[test]
fn ra_3_a_required_token_must_be_there() {
    let issuer = Issuer::new("idp");
    let set = set(&document(&[issuer.rule(", presence: REQUIRED")]));
    assert!(ask(&set, &[], "").is_err());
    let value = bearer(&issuer.token(&json!({})));
    assert!(ask(&set, &[("authorization", &value)], "").is_ok());
}

#[test]
fn ra_4_locations() {
    let issuer = Issuer::new("idp");
    let token = issuer.token(&json!({}));
    let by_default = set(&document(&[issuer.rule("")]));
    assert!(ask(&by_default, &[], &format!("a=b&access_token={token}")).unwrap().token.is_some());
    assert!(
        ask(&by_default, &[("authorization", &token)], "").unwrap().token.is_none(),
        "the prefix is exact"
    );
    let chosen = set(&document(&[issuer.rule(
        ", fromHeaders: [{name: X-Jwt, prefix: 'Value '}], fromParams: [tok], fromCookies: [jwt]",
    )]));
    let has = |headers: &[(&str, &str)], query: &str| {
        ask(&chosen, headers, query).unwrap().token.is_some()
    };
    assert!(has(&[("x-jwt", &format!("Value {token}"))], ""));
    assert!(has(&[], &format!("tok={token}")));
    assert!(has(&[("Cookie", &format!("a=b; jwt={token}"))], ""));
    assert!(!has(&[("authorization", &bearer(&token))], ""), "only where it was said");
    let second = issuer.token(&json!({"sub": "bob"}));
    let two = ask(&chosen, &[("x-jwt", &format!("Value {token}"))], &format!("tok={second}"));
    assert_eq!(two.unwrap_err(), Code::JwtMalformed, "which of them counts is open");
}

#[test]
fn ra_5_issuer_audience_and_what_reaches_the_application() {
    let issuer = Issuer::new("idp");
    let strict = set(&document(&[issuer.rule(", audiences: [bank, shop]")]));
    let value = bearer(&issuer.token(&json!({})));
    assert!(ask(&strict, &[("authorization", &value)], "").is_ok());
    let value = bearer(&issuer.token(&json!({"aud": ["x"]})));
    assert_eq!(
        ask(&strict, &[("authorization", &value)], "").unwrap_err(),
        Code::JwtAudienceMismatch
    );

    let outputs = set(&document(&[issuer.rule(
        ", outputPayloadToHeader: X-Payload, outputClaimToHeaders: [{header: X-Sub, claim: sub}, {header: X-Role, claim: realm.role}, {header: X-Bad, claim: bad}]",
    )]));
    let value = bearer(&issuer.token(&json!({"realm": {"role": "admin"}, "bad": "a\r\nb"})));
    let got = ask(&outputs, &[("authorization", &value)], "").unwrap();
    let set_to =
        |name: &str| got.add_headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!(
        (set_to("x-sub"), set_to("x-role"), set_to("x-bad")),
        (Some("alice"), Some("admin"), None)
    );
    let payload = URL_SAFE_NO_PAD.decode(set_to("x-payload").unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&payload).unwrap()["sub"], "alice");
    assert!(got.remove_headers.contains(&"authorization".to_owned()), "the token stays here");
    let without = ask(&outputs, &[("x-sub", "mallory")], "").unwrap();
    assert!(without.remove_headers.contains(&"x-sub".to_owned()), "nobody else fills them");
    let kept = set(&document(&[issuer.rule(", forwardOriginalToken: true")]));
    let got = ask(&kept, &[("authorization", &value)], "").unwrap();
    assert!(got.remove_headers.is_empty());
    // A browser asks first, without the token.
    let strict = set(&document(&[issuer.rule(", presence: REQUIRED")]));
    let preflight = [("Origin", "https://a"), ("Access-Control-Request-Method", "GET")];
    let http = HttpRequest { method: "OPTIONS", host: "api", path: "/", headers: &preflight };
    assert!(strict.authenticate(&http, "", NOW, &PublishedKeys::default()).is_ok());
}

#[test]
fn ra_6_7_documents() {
    let issuer = Issuer::new("idp");
    assert!(parse(&document(&[issuer.rule("")]), "t").is_ok());
    let secret = issuer.jwks().replace("\"kty\"", "\"d\":\"AAAA\",\"kty\"");
    for bad in [
        "{issuer: idp}".to_owned(),
        "{issuer: idp, jwksUri: 'ftp://idp.test/keys'}".into(),
        "{issuer: idp, jwksUri: '/keys'}".into(),
        "{issuer: idp, jwksUri: 'https://u:p@idp.test/keys'}".into(),
        issuer.rule(", jwksUri: 'https://idp.test/keys'"),
        "{issuer: 'https://idp.test', timeout: 2h}".into(),
        "{issuer: 'spiffe://corp.test'}".into(),
        "{issuer: 'spiffe://corp.test/web', audiences: [a]}".into(),
        format!("{{jwks: '{}'}}", issuer.jwks()),
        format!("{{issuer: idp, jwks: '{secret}'}}"),
        "{issuer: idp, jwks: '{\"keys\": []}'}".into(),
        "{issuer: idp, jwks: 'x'}".into(),
        issuer.rule(", audiences: ['']"),
        issuer.rule(", fromHeaders: [{name: 'a b'}]"),
        issuer.rule(", fromParams: ['']"),
        issuer.rule(", outputClaimToHeaders: [{header: ':authority', claim: x}]"),
        issuer.rule(", timeout: apple"),
        issuer.rule(", presence: MANDATORY"),
        issuer.rule(", unknown: x"),
    ] {
        assert!(parse(&document(std::slice::from_ref(&bad)), "t").is_err(), "{bad}");
    }
}

#[test]
fn ra_6_keys_that_the_issuer_publishes() {
    let (a, b) = (Issuer::new("https://a.test"), Issuer::new("https://b.test"));
    let text = document(&[
        "{issuer: 'https://a.test', jwksUri: 'https://a.test/keys', timeout: 2s}".into(),
        "{issuer: 'https://b.test'}".into(),
    ]);
    let set = set(&text);
    let sources = set.key_sources();
    let found: Vec<(String, u64)> =
        sources.iter().map(|s| (s.location.url(), s.timeout.as_secs())).collect();
    let discovery = "https://b.test/.well-known/openid-configuration".to_owned();
    assert_eq!(found, [("https://a.test/keys".to_owned(), 2), (discovery, 5)]);
    let elsewhere = text.replace("namespace: shop", "namespace: bank");
    assert!(self::set(&elsewhere).key_sources().is_empty(), "another namespace's are not fetched");

    let keys_of = |issuer: &Issuer| {
        Ok(Arc::new(countersign_jose::KeySet::parse(issuer.jwks().as_bytes()).unwrap()))
    };
    let mut keys = PublishedKeys::default();
    let ask = |keys: &PublishedKeys, token: &str| {
        let value = bearer(token);
        let headers = [("authorization", value.as_str())];
        let http = HttpRequest { method: "GET", host: "api", path: "/", headers: &headers };
        set.authenticate(&http, "", NOW, keys)
    };
    let token = a.token(&json!({}));
    let refused = ask(&keys, &token).unwrap_err();
    assert_eq!(refused.finding.code, Code::IssuerKeysUnavailable);
    assert_eq!(
        refused.newer_keys.as_ref(),
        Some(&sources[0].location),
        "that issuer's, no other's"
    );

    keys.insert(sources[0].location.clone(), keys_of(&a));
    assert_eq!(ask(&keys, &token).unwrap().token.unwrap().issuer(), "https://a.test");
    let refused = ask(&keys, &b.token(&json!({}))).unwrap_err();
    assert_eq!(
        refused.finding.code,
        Code::IssuerKeysUnavailable,
        "the other issuer is unknown yet"
    );
    // Signed by somebody who only says that they are a.
    let forged = ask(&keys, &Issuer::new("https://a.test").token(&json!({}))).unwrap_err();
    assert_eq!(forged.finding.code, Code::JwtSignatureInvalid);
    assert!(forged.newer_keys.is_some(), "the issuer may have a new key of that name");
    let old = ask(&keys, &a.token(&json!({"exp": 5}))).unwrap_err();
    assert_eq!((old.finding.code, old.newer_keys), (Code::JwtExpired, None), "no key mends that");
    // b's keys do not count for a's tokens.
    keys.insert(sources[0].location.clone(), keys_of(&b));
    assert_eq!(ask(&keys, &token).unwrap_err().finding.code, Code::JwtSignatureInvalid);
    keys.insert(sources[0].location.clone(), Err("it is down".into()));
    let refused = ask(&keys, &token).unwrap_err().finding;
    assert!(refused.message.contains("it is down"), "{refused}");
}

#[test]
fn jwt_svids_of_a_trust_domain() {
    let signer = Issuer::new("https://other.test");
    let text = document(&["{issuer: 'spiffe://corp.test', audiences: [api, x]}".to_owned()]);
    let set = set(&text);
    assert!(set.wants_jwt_svids() && set.key_sources().is_empty());
    let ask = |keys: &PublishedKeys, claims: &Value| {
        let header = json!({"alg": "ES256", "kid": "k1", "typ": "JWT"});
        let value = bearer(&signer.sign(&header, claims));
        let headers = [("authorization", value.as_str())];
        let http = HttpRequest { method: "GET", host: "api", path: "/", headers: &headers };
        set.authenticate(&http, "", NOW, keys).map_err(|e| e.finding.code)
    };
    let claims = |td: &str| {
        json!({"sub": format!("spiffe://{td}/web"), "aud": ["api"], "exp": NOW.secs() + 60,
               "iss": "https://idp.corp.test"})
    };
    let mut keys = PublishedKeys::default();
    assert_eq!(ask(&keys, &claims("corp.test")).unwrap_err(), Code::IssuerKeysUnavailable);
    // As SPIRE tells them, without `use`.
    let jwks = signer.jwks().replace("\"use\":\"sig\",", "");
    assert!(!jwks.contains("use"));
    let bundle = |td: &str| {
        countersign_jose::jwt_bundle_from_jwks(&td.parse().unwrap(), jwks.as_bytes()).unwrap()
    };
    keys.set_bundles(Some(
        BundleSet::collect([bundle("corp.test"), bundle("partner.test")]).unwrap(),
    ));
    let token = ask(&keys, &claims("corp.test")).unwrap().token.unwrap();
    assert_eq!(
        token.issuer(),
        "spiffe://corp.test",
        "whoever signs for a domain speaks for no other"
    );
    for (name, value, code) in [
        ("sub", json!("spiffe://partner.test/web"), Code::JwtKeyUnknown),
        ("sub", json!("alice"), Code::JwtMalformed),
        ("aud", json!(["bank"]), Code::JwtAudienceMismatch),
        ("aud", Value::Null, Code::JwtAudienceMismatch),
        ("exp", json!(NOW.secs() - 1), Code::JwtExpired),
        ("exp", Value::Null, Code::JwtMalformed),
    ] {
        let mut claims = claims("corp.test");
        claims[name] = value;
        assert_eq!(ask(&keys, &claims).unwrap_err(), code, "{claims}");
    }
    keys.set_bundles(Some(BundleSet::collect([bundle("partner.test")]).unwrap()));
    assert_eq!(ask(&keys, &claims("corp.test")).unwrap_err(), Code::JwtKeyUnknown);
}

#[test]
fn policies_can_ask_for_what_a_token_says() {
    let issuer = Issuer::new("https://idp.test");
    let text = document(&[issuer.rule("")])
        + "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n\
           spec: {rules: [{from: [{source: {requestPrincipals: ['https://idp.test/*']}}], when: [{key: 'request.auth.claims[groups]', values: [dev]}]}]}\n";
    let set = set(&text);
    let id = SpiffeId::parse("spiffe://corp.test/web").unwrap();
    for (groups, allowed) in [(json!(["dev", "x"]), true), (json!("ops"), false)] {
        let value = bearer(&issuer.token(&json!({ "groups": groups })));
        let headers = [("authorization", value.as_str())];
        let http = HttpRequest { method: "GET", host: "api", path: "/", headers: &headers };
        let token = set.authenticate(&http, "", NOW, &PublishedKeys::default()).unwrap().token;
        let a = Attributes {
            caller: Caller::Identity(&id),
            certificate: None,
            source_ip: None,
            remote_ip: None,
            destination_ip: None,
            destination_port: Some(80),
            sni: None,
            http: Some(http),
            token: token.as_ref(),
            external: None,
        };
        assert_eq!(set.judge(&a).is_allowed(), allowed, "{groups}");
    }
}

#[test]
fn a_rule_that_may_be_for_others_gives_no_identity() {
    let issuer = Issuer::new("idp");
    let text = document(&[issuer.rule("")])
        .replace("spec: {", "spec: {selector: {matchLabels: {app: other}}, ");
    let workload = Workload {
        trust_domain: "corp.test".parse().unwrap(),
        namespace: "shop".into(),
        labels: None,
        mesh: Mesh::default(),
    };
    let set = PolicySet::compile(&parse(&text, "t").unwrap(), &workload, 1);
    let value = bearer(&issuer.token(&json!({})));
    assert!(ask(&set, &[("authorization", &value)], "").is_err());
    assert_eq!(ask(&set, &[], "").unwrap().token, None);
}

#[test]
fn every_copy_of_the_token_stays_here() {
    let issuer = Issuer::new("idp");
    let set = set(&document(&[issuer.rule("")]));
    let token = issuer.token(&json!({}));
    let value = bearer(&token);
    let got = ask(&set, &[("authorization", &value)], &format!("access%5Ftoken={token}")).unwrap();
    assert_eq!((got.remove_headers.len(), got.remove_parameters.len()), (1, 1));
    let escaped = ask(&set, &[], "access%5ftoken=bad");
    assert!(escaped.is_err(), "names are read as the application reads them");
}

#[test]
fn many_candidates_are_refused_at_once() {
    let issuer = Issuer::new("idp");
    let set = set(&document(&[issuer.rule(", fromParams: [t]")]));
    let query: Vec<String> = (0..9000).map(|i| format!("t={i}")).collect();
    assert_eq!(ask(&set, &[], &query.join("&")).unwrap_err(), Code::JwtMalformed);
}

#[test]
fn framing_and_identity_headers_cannot_be_filled_from_tokens() {
    let issuer = Issuer::new("idp");
    for name in
        ["Content-Length", "transfer_encoding", "Host", "X-Forwarded-Client-Cert", "Connection"]
    {
        for field in [
            format!(", outputPayloadToHeader: {name}"),
            format!(", outputClaimToHeaders: [{{header: {name}, claim: sub}}]"),
            format!(", fromHeaders: [{{name: {name}}}]"),
        ] {
            assert!(parse(&document(&[issuer.rule(&field)]), "t").is_err(), "{field}");
        }
    }
}
