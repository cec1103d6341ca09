//! What every store must do, run against each implementation.

#![allow(clippy::unwrap_used)]
use std::path::Path;

use countersign_identity::{Entry, SelectorSet, SpiffeId, TrustDomain, UnixTime};
use countersign_store::{
    AgentRecord, AuthorityKind, AuthorityRecord, AuthorityStatus, JoinToken, JournalRecord,
    PolicyRecord, SqliteStore, Store, StoreError,
};

fn td() -> TrustDomain {
    TrustDomain::new("corp.test").unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_path(&td(), path).unwrap()
}

fn t(secs: i64) -> UnixTime {
    UnixTime::from_secs(secs)
}

fn selectors() -> SelectorSet {
    ["unix:uid:1", "unix:path:/bin/a:b"].iter().map(|s| s.parse().unwrap()).collect()
}

fn entry(name: &str) -> Entry {
    let mut e = Entry::new(id(&format!("/{name}")), id("/spire/agent/x"), selectors());
    e.id = name.into();
    e.dns_names = vec!["web.test".parse().unwrap()];
    e.x509_svid_ttl = Some(std::time::Duration::from_secs(60));
    e.expires_at = Some(t(99));
    e.hint = "internal".into();
    e
}

fn record(n: i64) -> JournalRecord {
    JournalRecord {
        kind: "x509",
        spiffe_id: id("/web"),
        serial: format!("{n:x}"),
        issued_at: t(n),
        not_after: t(n + 10),
        issued_to: "agent".into(),
    }
}

/// The suite. `open` opens the same data every time it is called.
async fn contract<S: Store>(open: impl AsyncFn() -> S) {
    let store = open().await;
    store.create_entries(vec![entry("a"), entry("b")]).await.unwrap();
    assert!(
        store.create_entries(vec![entry("c"), entry("a")]).await.is_err(),
        "an id that exists is refused"
    );
    let mut changed = entry("b");
    changed.revision = 7;
    store.update_entry(changed.clone()).await.unwrap();
    let missing = store.update_entry(entry("zzz")).await.unwrap_err();
    assert!(matches!(missing, StoreError::NotFound(_)));
    assert_eq!(store.delete_entries(vec!["a".into(), "none".into()]).await.unwrap(), ["a"]);

    let token = JoinToken { sha256: [1; 32], expires_at: t(50), alias: Some(id("/node")) };
    store.create_join_token(token.clone()).await.unwrap();
    assert_eq!(store.consume_join_token([1; 32]).await.unwrap(), Some(token.clone()));
    assert_eq!(store.consume_join_token([1; 32]).await.unwrap(), None, "only once");
    store.create_join_token(token).await.unwrap();
    assert_eq!(store.prune_join_tokens(t(49)).await.unwrap(), 0);
    assert_eq!(store.prune_join_tokens(t(50)).await.unwrap(), 1);

    let agent = AgentRecord {
        id: id("/spire/agent/join_token/x"),
        attestor: "join_token".into(),
        selectors: selectors(),
        serial: "aa".into(),
        not_after: t(5),
        next_serial: Some("bb".into()),
        next_not_after: Some(t(6)),
        banned: true,
        can_reattest: false,
        version: "1".into(),
    };
    store.put_agent(agent.clone()).await.unwrap();
    let policy = PolicyRecord {
        kind: "AuthorizationPolicy".into(),
        namespace: "shop".into(),
        name: "p".into(),
        yaml: "a: 1".into(),
    };
    store.put_policies(vec![policy.clone()]).await.unwrap();
    let authority = AuthorityRecord {
        kind: AuthorityKind::Signing,
        status: AuthorityStatus::Active,
        chain: vec![vec![1, 2], vec![3]],
        public_key: vec![4],
        key_id: "k".into(),
        sealed_key: vec![5],
        published_at: t(1),
        not_after: t(2),
    };
    store.put_authorities(vec![authority.clone()], 9).await.unwrap();
    for n in 1..=5 {
        store.append_journal(vec![record(n)]).await.unwrap();
    }
    drop(store);

    // Everything is there after a restart, and what failed is not.
    let store = open().await;
    let all = store.load().await.unwrap();
    assert_eq!(all.entries, [changed]);
    assert_eq!(all.agents, std::slice::from_ref(&agent));
    assert_eq!(all.policies, [policy]);
    assert_eq!(all.authorities, [authority]);
    assert_eq!(all.bundle_sequence, 9);
    assert_eq!(store.journal_len().await.unwrap(), 5);
    let (newest, intact) = store.journal(3, None).await.unwrap();
    assert!(intact);
    assert_eq!(newest.iter().map(|e| e.number).collect::<Vec<_>>(), [5, 4, 3]);
    let (older, intact) = store.journal(3, Some(3)).await.unwrap();
    assert!(intact);
    assert_eq!(older.iter().map(|e| e.number).collect::<Vec<_>>(), [2, 1]);
    assert!(store.delete_agent(agent.id.clone()).await.unwrap());
    assert!(!store.delete_agent(agent.id).await.unwrap());
    let gone = |n: &str| store.delete_policy("AuthorizationPolicy".into(), "shop".into(), n.into());
    assert!(gone("p").await.unwrap());
    assert!(!gone("p").await.unwrap());

    // Concurrent appends all land, in one unbroken chain.
    let tasks = (0..200).map(|n| store.append_journal(vec![record(1000 + n), record(2000 + n)]));
    for result in futures_join(tasks).await {
        result.unwrap();
    }
    let (all, intact) = store.journal(1000, None).await.unwrap();
    assert_eq!(all.len(), 405);
    assert!(intact);
}

async fn futures_join<F: Future>(tasks: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut tasks: Vec<_> = tasks.map(Box::pin).map(Some).collect();
    let mut out = Vec::new();
    std::future::poll_fn(|cx| {
        for slot in &mut tasks {
            if let Some(task) = slot
                && let std::task::Poll::Ready(v) = task.as_mut().poll(cx)
            {
                out.push(v);
                *slot = None;
            }
        }
        if tasks.iter().all(Option::is_none) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    out
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.db");
    contract(async || SqliteStore::open(&path, &td()).unwrap()).await;
}

#[tokio::test]
async fn a_changed_journal_shows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.db");
    let store = SqliteStore::open(&path, &td()).unwrap();
    for n in 1..=5 {
        store.append_journal(vec![record(n)]).await.unwrap();
    }
    let raw = rusqlite::Connection::open(&path).unwrap();
    let refused = raw.execute("UPDATE journal SET spiffe_id = 'x' WHERE number = 3", []);
    assert!(refused.unwrap_err().to_string().contains("append-only"));
    raw.execute_batch("DROP TRIGGER journal_no_update").unwrap();
    raw.execute("UPDATE journal SET serial = 'forged' WHERE number = 3", []).unwrap();
    let (_, intact) = store.journal(100, None).await.unwrap();
    assert!(!intact);
}

#[tokio::test]
async fn foreign_and_newer_files_are_left_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.db");
    drop(SqliteStore::open(&path, &td()).unwrap());
    let other = SqliteStore::open(&path, &TrustDomain::new("other.test").unwrap());
    assert!(matches!(other.err(), Some(StoreError::OtherTrustDomain { .. })));
    let version = |p: &Path| -> i64 {
        rusqlite::Connection::open(p)
            .unwrap()
            .query_row("PRAGMA user_version", [], |r| r.get(0))
            .unwrap()
    };
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    let newer = SqliteStore::open(&path, &td());
    assert!(matches!(newer.err(), Some(StoreError::SchemaTooNew { found: 99, .. })));
    assert_eq!(version(&path), 99);
    let nowhere = SqliteStore::open(&dir.path().join("no/such/dir.db"), &td());
    assert!(matches!(nowhere.err(), Some(StoreError::Failed(_))));
}
