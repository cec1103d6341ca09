//! YAML documents, compiled in both semantics: the index must agree with looking at every rule, and strict must
//! not allow what Istio refuses.
#![no_main]
use countersign_identity::{SpiffeId, TrustDomain};
use countersign_policy::{
    Attributes, Caller, HttpRequest, Mesh, Normalization, PolicySet, Semantics, Workload, parse,
};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(documents) = parse(text, "fuzz") else { return };
    let _ = countersign_policy::lint(&documents, "istio-system");
    let set = |semantics| {
        let workload = Workload {
            trust_domain: TrustDomain::new("corp.test").expect("name"),
            namespace: "default".into(),
            labels: None,
            mesh: Mesh { semantics, normalization: Normalization::Base, ..Mesh::default() },
        };
        PolicySet::compile(&documents, &workload, 1)
    };
    let (strict, istio) = (set(Semantics::Strict), set(Semantics::Istio));
    let id = SpiffeId::parse("spiffe://corp.test/ns/default/sa/web").expect("id");
    for caller in [Caller::Identity(&id), Caller::Nobody] {
        for http in [None, Some("/a"), Some("/a/b")] {
            let a = Attributes {
                caller,
                certificate: None,
                source_ip: Some([10, 0, 0, 1].into()),
                remote_ip: None,
                destination_ip: None,
                destination_port: Some(80),
                sni: None,
                http: http.map(|path| HttpRequest { method: "GET", host: "a", path, headers: &[] }),
                token: None,
                external: None,
            };
            for set in [&strict, &istio] {
                assert_eq!(set.judge(&a).is_allowed(), set.judge_linearly(&a).is_allowed());
                assert_eq!(set.explain(&a).verdict, set.judge(&a));
            }
        }
    }
});
