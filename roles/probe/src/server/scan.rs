//! Versions, groups and cipher suites, by ClientHellos of our own.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Target;
use crate::dial::Failed;
use crate::hello::{
    Answer, Hello, SUITES13, TLS10, TLS11, TLS12, TLS13, USUAL, WEAK, X25519, X25519MLKEM768,
    alert_name, read,
};
use crate::report::{Outcome, Report};

/// X25519, P-256, P-384.
const GROUPS: &[u16] = &[X25519, 0x0017, 0x0018];

impl Target<'_> {
    pub(super) async fn scan(&self, report: &mut Report) {
        let versions = [
            ("protocol/tls10", TLS10, USUAL, "TLS 1.0"),
            ("protocol/tls11", TLS11, USUAL, "TLS 1.1"),
            ("protocol/tls12", TLS12, USUAL, "TLS 1.2"),
            ("protocol/tls13", TLS13, SUITES13, "TLS 1.3"),
        ];
        for (case, version, suites, name) in versions {
            let answer = self.hello(version, suites, GROUPS).await;
            let (outcome, evidence) = judged(&answer, |chosen, _| chosen == version);
            if outcome == Outcome::Accepted && version < TLS12 {
                report.found("weak-tls/live-old-version", format!("{name}: {evidence}"));
            }
            report.case(case, outcome, evidence);
        }
        let weak: Vec<u16> = WEAK.iter().map(|(suite, _)| *suite).collect();
        let answer = self.hello(TLS12, &weak, GROUPS).await;
        let (outcome, mut evidence) = judged(&answer, |_, suite| weak.contains(&suite));
        if let Ok(Answer::Chosen { suite, .. }) = answer
            && let Some((_, name)) = WEAK.iter().find(|(s, _)| *s == suite)
        {
            evidence = format!("chooses TLS_{name}");
        }
        if outcome == Outcome::Accepted {
            report.found("weak-tls/live-weak-cipher", evidence.clone());
        }
        report.case("cipher/weak", outcome, evidence);
        // No flaw yet where it is missing, but good to know.
        let answer = self.hello(TLS13, SUITES13, &[X25519MLKEM768]).await;
        let (outcome, evidence) = judged(&answer, |version, _| version == TLS13);
        report.case("group/x25519mlkem768", outcome, evidence);
    }

    async fn hello(&self, version: u16, suites: &[u16], groups: &[u16]) -> Result<Answer, String> {
        let _place = self.dialer.place().await;
        let name = self.options.name();
        let hello = Hello {
            version,
            suites,
            groups,
            server_name: name.parse::<std::net::IpAddr>().is_err().then_some(name),
            random: countersign_keys::random(),
        };
        let mut stream = match self.dialer.before_tls(&self.options.target).await {
            Ok(stream) => stream,
            Err(Failed::NoConnection(why) | Failed::NoTls(why)) => return Err(why),
            Err(Failed::Handshake(e)) => return Err(e.to_string()),
        };
        let exchange = async {
            stream.write_all(&hello.encode()).await.map_err(|e| e.to_string())?;
            let mut data = Vec::new();
            let mut buf = [0; 2048];
            loop {
                match read(&data) {
                    Answer::Incomplete if data.len() < 1 << 16 => {}
                    answer => return Ok(answer),
                }
                match stream.read(&mut buf).await {
                    Ok(n) if n > 0 => data.extend_from_slice(&buf[..n]),
                    _ => return Ok(Answer::Other),
                }
            }
        };
        match tokio::time::timeout(self.options.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err("nothing came in time".into()),
        }
    }
}

fn judged(answer: &Result<Answer, String>, wanted: impl Fn(u16, u16) -> bool) -> (Outcome, String) {
    match answer {
        Err(why) => (Outcome::Unclear, why.clone()),
        Ok(Answer::Chosen { version, suite, .. }) if wanted(*version, *suite) => {
            (Outcome::Accepted, format!("chooses version {version:#06x}, suite {suite:#06x}"))
        }
        Ok(Answer::Chosen { version, suite, .. }) => {
            let what = format!("chooses version {version:#06x}, suite {suite:#06x} instead");
            (Outcome::Refused, what)
        }
        Ok(Answer::Alert(alert)) => (Outcome::Refused, format!("TLS alert {}", alert_name(*alert))),
        Ok(Answer::Incomplete | Answer::Other) => (Outcome::Refused, "closes".into()),
    }
}
