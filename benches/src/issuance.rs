//! Issuing X509-SVIDs: what profile, signature and journal cost beside the bare cryptography.

use std::time::Duration;

use countersign_identity::{SpiffeId, TrustDomain};
use countersign_keys::{KeyAlgorithm, PrivateKey, Signer};
use countersign_store::{JournalRecord, SqliteStore, Store};
use countersign_tls::current_time;
use countersign_x509::profile::{CertSpec, Profile};
use countersign_x509::{CertInfo, csr};

use crate::kit::{Kit, show};

const BATCH: usize = 250;
const ROUNDS: usize = 9;

fn thread_cpu_us() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 * 1e6 + t.tv_nsec as f64 / 1e3
}

pub(crate) async fn run() {
    let kit = Kit::new();
    let td = TrustDomain::new("bench.test").expect("name");
    let id = SpiffeId::from_path(&td, "/ns/shop/sa/web").expect("id");
    let store = SqliteStore::open(&kit.dir.path().join("bench.db"), &td).expect("store");
    let issuer = CertInfo::parse(&kit.ca.intermediate).expect("issuer");
    let signer = &kit.ca.intermediate_key;
    let now = current_time();
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    println!("\nissuance, batches of {BATCH}");
    for _ in 0..ROUNDS {
        let requests: Vec<(PrivateKey, Vec<u8>)> = (0..BATCH)
            .map(|_| {
                let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("key");
                let csr = csr::create(key.public_key_spki(), key.algorithm(), |m| key.sign(m))
                    .expect("csr");
                (key, csr)
            })
            .collect();
        // The floor: one key, one request check, one signature, one row in the same transaction.
        let before = thread_cpu_us();
        for (_, csr) in &requests {
            PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("key");
            csr::verify(csr).expect("sound");
            signer.sign(csr).expect("signature");
        }
        bare.push((thread_cpu_us() - before) / BATCH as f64);
        let before = thread_cpu_us();
        let mut records = Vec::with_capacity(BATCH);
        for (_, csr) in &requests {
            PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("key");
            let spki = csr::verify(csr).expect("sound");
            let spec = CertSpec {
                profile: Profile::Leaf,
                serial: countersign_keys::random(),
                id: &id,
                dns_names: &[],
                common_name: "",
                not_before: now,
                not_after: now + Duration::from_secs(3600),
                spki_der: &spki,
                issuer: Some(&issuer),
                signature_algorithm: signer.algorithm(),
            };
            let tbs = spec.to_be_signed().expect("profile");
            let signature = signer.sign(tbs.bytes()).expect("signature");
            tbs.assemble(&signature).expect("certificate");
            records.push(JournalRecord {
                kind: "x509",
                spiffe_id: id.clone(),
                serial: tbs.serial.clone(),
                issued_at: now,
                not_after: tbs.not_after,
                issued_to: "bench".into(),
            });
        }
        store.append_journal(records).await.expect("journal");
        ours.push((thread_cpu_us() - before) / BATCH as f64);
    }
    let floor = show("key + request check + signature", "us CPU", &mut bare);
    let ours = show("the same, with profile and journal row", "us CPU", &mut ours);
    println!("  ratio {:.2}; {:.0} SVIDs a second on one core", ours / floor, 1e6 / ours);
}
