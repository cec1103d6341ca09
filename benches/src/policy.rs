//! Deciding: the index beside looking at every rule, few policies beside many.

use std::time::Instant;

use countersign_identity::{SpiffeId, TrustDomain};
use countersign_policy::{
    Attributes, Caller, Document, HttpRequest, Mesh, PolicySet, Workload, parse,
};

const RULES: usize = 10;
const ROUNDS: usize = 9;
/// Requests of one round; each asks something else.
const REQUESTS: usize = 20_000;

/// Policies for services that call each other: by principal, by namespace, by path, some that refuse.
fn documents(policies: usize) -> Vec<Document> {
    let mut text = String::new();
    for p in 0..policies {
        let action = if p % 10 == 9 { "DENY" } else { "ALLOW" };
        text.push_str(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{p}, namespace: shop}}\n\
             spec:\n  action: {action}\n  rules:\n"
        ));
        for r in 0..RULES {
            let from = match r % 3 {
                0 => format!("principals: [bench.test/ns/n{p}/sa/s{r}]"),
                1 => format!("namespaces: [n{p}]"),
                _ => format!("serviceAccounts: [n{p}/s{r}]"),
            };
            let method = if action == "DENY" { "DELETE" } else { "GET" };
            text.push_str(&format!(
                "  - from: [{{source: {{{from}}}}}]\n    to: [{{operation: {{methods: [{method}], paths: [/p{p}/r{r}, /p{p}/d{r}/*]}}}}]\n"
            ));
        }
        text.push_str("---\n");
    }
    parse(&text, "bench").expect("documents")
}

/// Time of each request in ns, in order.
fn measure(
    requests: &[(SpiffeId, String)],
    mut decide: impl FnMut(&Attributes<'_>) -> bool,
) -> (f64, f64, f64) {
    let mut times = Vec::with_capacity(requests.len());
    let mut allowed = 0usize;
    for (id, path) in requests {
        let headers = [("user-agent", "bench"), ("accept", "*/*")];
        let a = Attributes {
            caller: Caller::Identity(id),
            certificate: None,
            source_ip: Some([127, 0, 0, 1].into()),
            remote_ip: None,
            destination_ip: Some([127, 0, 0, 1].into()),
            destination_port: Some(8080),
            sni: None,
            http: Some(HttpRequest { method: "GET", host: "api", path, headers: &headers }),
            token: None,
            external: None,
        };
        let begun = Instant::now();
        let yes = decide(std::hint::black_box(&a));
        times.push(begun.elapsed().as_nanos() as f64);
        allowed += usize::from(yes);
    }
    assert!(allowed > 0, "some are allowed");
    times.sort_by(f64::total_cmp);
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    (times[times.len() / 2], times[times.len() * 99 / 100], mean)
}

/// Callers and paths: `different` ones, spread over the policies, each again and again; nine of ten are
/// allowed.
fn requests(policies: usize, n: usize, different: usize) -> Vec<(SpiffeId, String)> {
    let td = TrustDomain::new("bench.test").expect("name");
    (0..n)
        .map(|i| {
            let i = i % different;
            let p = i.wrapping_mul(7919) % policies;
            let p = if p % 10 == 9 { p - 1 } else { p };
            let r = i % RULES;
            let id = SpiffeId::from_path(&td, &format!("/ns/n{p}/sa/s{r}")).expect("id");
            let path = match i % 10 {
                0 => "/nothing".to_owned(),
                1..=4 => format!("/p{p}/d{r}/item"),
                _ => format!("/p{p}/r{r}"),
            };
            (id, path)
        })
        .collect()
}

pub(crate) fn run() {
    let workload = Workload {
        trust_domain: TrustDomain::new("bench.test").expect("name"),
        namespace: "shop".into(),
        labels: None,
        mesh: Mesh::default(),
    };
    println!("\ndeciding, {RULES} rules a policy, times include reading the clock");
    let sets: Vec<(usize, PolicySet)> = [1, 100, 10_000]
        .into_iter()
        .map(|n| {
            let documents = documents(n);
            let begun = Instant::now();
            let set = PolicySet::compile(&documents, &workload, 1);
            println!("  {n:>6} policies compiled in {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
            (n, set)
        })
        .collect();
    let mut clock: Vec<f64> =
        (0..ROUNDS).map(|_| measure(&requests(1, REQUESTS, 10), |_| true).0).collect();
    let median = |v: &mut Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    println!("  reading the clock alone: {:.0} ns", median(&mut clock));
    for (what, different) in [("ten requests in turn", 10), ("every request another", REQUESTS)] {
        println!("  {what}");
        // Turn by turn, so that noise falls on all alike.
        let mut rows = vec![(Vec::new(), Vec::new(), Vec::new()); sets.len()];
        for _ in 0..ROUNDS {
            for (row, (n, set)) in rows.iter_mut().zip(&sets) {
                let asked = requests(*n, REQUESTS, different);
                let (p50, p99, mean) = measure(&asked, |a| set.judge(a).is_allowed());
                row.0.push(p50);
                row.1.push(p99);
                row.2.push(mean);
            }
        }
        let mut few = None;
        for ((n, set), mut row) in sets.iter().zip(rows) {
            let (p50, p99, mean) = (median(&mut row.0), median(&mut row.1), median(&mut row.2));
            let sample = requests(*n, if *n > 1000 { 20 } else { 2000 }, different);
            let linear = measure(&sample, |a| set.judge_linearly(a).is_allowed()).2;
            print!("    {n:>6} policies: p50 {p50:.0} ns, p99 {p99:.0} ns, mean {mean:.0} ns; ");
            print!("every rule in turn {linear:.0} ns ({:.1} times)", linear / mean);
            match few {
                None => {
                    few = Some((p50, mean));
                    println!();
                }
                Some((f50, fmean)) => println!(
                    "; to one policy: {:.2} at p50, {:.2} in the mean",
                    p50 / f50,
                    mean / fmean
                ),
            }
        }
    }
}
