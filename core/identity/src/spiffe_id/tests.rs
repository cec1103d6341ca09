use proptest::prelude::*;

use super::*;

fn bad(uri: &str) -> IdError {
    SpiffeId::parse(uri).expect_err(uri)
}

#[test]
fn spiffe_id_2_scheme_is_spiffe() {
    for uri in ["", "spiffe:", "spiffe:/a/b", "http://a/b", "/a/b", "xspiffe://a", "spiffé://a"] {
        assert!(matches!(bad(uri), IdError::Scheme(_)), "{uri}");
    }
}

#[test]
fn spiffe_id_2_trust_domain_is_not_empty() {
    assert_eq!(bad("spiffe://"), TrustDomainError::Empty.into());
    assert_eq!(bad("spiffe:///path"), TrustDomainError::Empty.into());
}

#[test]
fn spiffe_id_2_no_query_no_fragment() {
    assert_eq!(bad("spiffe://a/b?c"), IdError::QueryOrFragment('?'));
    assert_eq!(bad("spiffe://a/b#c"), IdError::QueryOrFragment('#'));
    assert_eq!(bad("spiffe://a?"), IdError::QueryOrFragment('?'));
}

#[test]
fn spiffe_id_2_1_no_userinfo_port_or_percent() {
    for uri in ["spiffe://u@a/b", "spiffe://a:80/b", "spiffe://a%2eb/c"] {
        assert!(matches!(bad(uri), IdError::TrustDomain(_)), "{uri}");
    }
}

#[test]
fn spiffe_id_2_1_ipv4_and_dns_look_the_same() {
    assert!(SpiffeId::parse("spiffe://1.2.3.4/service").is_ok());
    assert!(SpiffeId::parse("spiffe://domain.test/service").is_ok());
}

#[test]
fn spiffe_id_2_2_path_segments() {
    for uri in ["spiffe://a/", "spiffe://a//b", "spiffe://a/b/"] {
        assert!(matches!(bad(uri), IdError::EmptySegment(_)), "{uri}");
    }
    for uri in ["spiffe://a/.", "spiffe://a/..", "spiffe://a/b/../c", "spiffe://a/./b"] {
        assert!(matches!(bad(uri), IdError::DotSegment(_)), "{uri}");
    }
    for uri in
        ["spiffe://a/b%20c", "spiffe://a/b c", "spiffe://a/b*", "spiffe://a/é", "spiffe://a/b\0"]
    {
        assert!(matches!(bad(uri), IdError::BadChar { .. }), "{uri}");
    }
    assert!(SpiffeId::parse("spiffe://a/...").is_ok());
    assert!(SpiffeId::parse("spiffe://a/B-_.9").is_ok());
}

#[test]
fn spiffe_id_2_3_length() {
    let at_limit = format!("spiffe://a/{}", "b".repeat(2048 - 11));
    assert_eq!(SpiffeId::parse(&at_limit).unwrap().as_str().len(), 2048);
    assert_eq!(bad(&format!("{at_limit}b")), IdError::TooLong(2049));
}

#[test]
fn spiffe_id_2_4_case() {
    let folded = SpiffeId::parse("SPIFFE://Corp.Test/Web").unwrap();
    assert_eq!(folded.as_str(), "spiffe://corp.test/Web");
    assert_ne!(folded, SpiffeId::parse("spiffe://corp.test/web").unwrap());
}

#[test]
fn parts() {
    let id = SpiffeId::parse("spiffe://corp.test/ns/shop/sa/web").unwrap();
    assert_eq!(id.trust_domain().as_str(), "corp.test");
    assert_eq!(id.path(), "/ns/shop/sa/web");
    assert_eq!(id.principal(), "corp.test/ns/shop/sa/web");
    assert_eq!(id.namespace_and_service_account(), Some(("shop", "web")));
    assert_eq!(
        SpiffeId::parse("spiffe://corp.test/x/ns/shop/sa/web").unwrap().namespace(),
        None,
        "the namespace is a whole-path shape, never a substring"
    );
    assert!(SpiffeId::parse("spiffe://corp.test/spire/agent/join_token/x").unwrap().is_reserved());
    assert!(!SpiffeId::parse("spiffe://corp.test/spirex").unwrap().is_reserved());
    assert!(id.trust_domain().id().is_trust_domain());
}

proptest! {
    #[test]
    fn parse_never_panics_and_round_trips(text in ".{0,80}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(SpiffeId::parse(id.as_str()).unwrap(), id);
        }
    }

    #[test]
    fn near_misses(uri in "(spiffe|SPIFFE|http)://[a-zA-Z0-9._%:@-]{0,12}(/[a-zA-Z0-9._%~-]{0,6}){0,4}[?#/]?") {
        if let Ok(id) = SpiffeId::parse(&uri) {
            prop_assert!(id.as_str().starts_with("spiffe://"));
            prop_assert!(!id.path().ends_with('/'));
            prop_assert!(!id.path().contains('%'));
            prop_assert_eq!(id.trust_domain().as_str().to_ascii_lowercase(), id.trust_domain().as_str());
        }
    }
}
