//! Rego in this process. A policy runs on a thread of its own and is stopped when its time is up, so that a
//! loop in it delays nobody else.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_findings::{Code, Finding};
use countersign_keys::read_bounded;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};

use crate::input::input;
use crate::opa::decision;
use crate::{Outcome, Question};

/// Largest file in bytes.
const MAX_FILE: u64 = 16 << 20;

pub(crate) struct Evaluator {
    engine: Engine,
    query: String,
}

impl std::fmt::Debug for Evaluator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("rego::Evaluator")
    }
}

impl Evaluator {
    /// Reads modules and data. A mistake in them is an error here, not at the first request.
    pub(crate) fn new(
        files: &[PathBuf],
        data: Option<&Path>,
        query: &str,
        limit: Duration,
    ) -> Result<Self, Finding> {
        let mut engine = Engine::new();
        let interval = NonZeroU32::new(256).unwrap_or(NonZeroU32::MIN);
        engine.set_execution_timer_config(ExecutionTimerConfig { limit, check_interval: interval });
        let decode: Box<dyn regorus::Extension> = Box::new(decode);
        engine
            .add_extension("io.jwt.decode".into(), 1, decode)
            .map_err(|e| Finding::new(Code::InternalError, e.to_string()))?;
        for path in files {
            let text = read(path)?;
            engine.add_policy(path.display().to_string(), text).map_err(|e| syntax(path, &e))?;
        }
        if let Some(path) = data {
            engine.add_data_json(&read(path)?).map_err(|e| syntax(path, &e))?;
        }
        let mut this = Self { engine, query: query.to_owned() };
        // Compiled once, so that an unknown function or an unsafe variable shows now.
        this.engine
            .eval_rule(this.query.clone())
            .map(|_| ())
            .or_else(
                |e| if e.to_string().contains("not a valid rule path") { Err(e) } else { Ok(()) },
            )
            .map_err(|e| {
                let text = format!("`{query}` is not defined by these modules: {e}");
                Finding::new(Code::InvalidValue, text)
            })?;
        Ok(this)
    }

    pub(crate) async fn ask(&self, question: &Question<'_>) -> Outcome {
        let mut engine = self.engine.clone();
        let query = self.query.clone();
        let input =
            Value::from_json_str(&input(question).to_string()).map_err(|e| e.to_string())?;
        let answer = tokio::task::spawn_blocking(move || {
            engine.set_input(input);
            let value = engine.eval_rule(query).map_err(|e| first_line(&e.to_string()))?;
            if value == Value::Undefined {
                return Ok(None);
            }
            let json = value.to_json_str().map_err(|e| e.to_string())?;
            serde_json::from_str(&json).map(Some).map_err(|e| e.to_string())
        });
        let answer = answer.await.map_err(|e| e.to_string())??;
        decision(answer.as_ref())
    }
}

fn read(path: &Path) -> Result<String, Finding> {
    let bytes = read_bounded(path, MAX_FILE).map_err(|e| e.finding())?;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| Finding::new(Code::ConfigSyntax, "not UTF-8").at(path.display().to_string()))
}

fn syntax(path: &Path, e: &dyn std::fmt::Display) -> Finding {
    Finding::new(Code::ConfigSyntax, e.to_string().trim().to_owned()).at(path.display().to_string())
}

fn first_line(text: &str) -> String {
    text.lines()
        .find(|l| !l.trim().is_empty())
        .unwrap_or_default()
        .trim()
        .chars()
        .take(200)
        .collect()
}

/// `io.jwt.decode`: header, payload and signature, unverified as its name says. Policies written for OPA's
/// Envoy plugin use it after something else has verified the token.
fn decode(arguments: Vec<Value>) -> anyhow::Result<Value> {
    let token = arguments.first().context("needs a token")?.as_string()?.to_string();
    let parts: Vec<&str> = token.split('.').collect();
    let [header, payload, signature] = parts.as_slice() else { bail!("not a JWT") };
    let json = |part: &str| -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
    };
    let signature = URL_SAFE_NO_PAD.decode(signature)?;
    let hex: String = signature.iter().map(|b| format!("{b:02x}")).collect();
    let all = serde_json::json!([json(header)?, json(payload)?, hex]);
    Value::from_json_str(&all.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use countersign_policy::{Answer, Attributes, Caller, HttpRequest, parse_providers};

    use crate::{Engines, Question, Reply};

    async fn ask(rego: &str, path: &str) -> Result<Reply, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.rego");
        std::fs::write(&file, rego).unwrap();
        let yaml = format!(
            "extensionProviders:\n- name: rego\n  rego: {{files: [{}], timeout: 0.3s}}",
            file.display()
        );
        let engines =
            Engines::new(parse_providers(&yaml, "test").unwrap()).map_err(|e| e.to_string())?;
        let token = "eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ.AA";
        let headers = [("authorization", token)];
        let question = Question {
            attributes: Attributes {
                caller: Caller::Nobody,
                certificate: None,
                source_ip: None,
                remote_ip: None,
                destination_ip: None,
                destination_port: Some(80),
                sni: None,
                http: Some(HttpRequest { method: "GET", host: "shop", path, headers: &headers }),
                token: None,
                external: None,
            },
            source_port: 1,
            own_id: "spiffe://corp.test/api",
            query: "q=a+b",
            protocol: "HTTP/1.1",
            id: "x",
            now: std::time::Duration::from_secs(1),
        };
        Ok(engines.ask(&Arc::from("rego"), &question).await)
    }

    const POLICY: &str = r#"
        package envoy.authz
        import rego.v1
        default allow := false
        claims := payload if {
            [_, payload, _] := io.jwt.decode(input.attributes.request.http.headers.authorization)
        }
        allow if {
            input.parsed_path[0] == "api"
            input.parsed_query.q[0] == "a b"
            claims.role == "admin"
        }
    "#;

    #[tokio::test]
    async fn rego_decides_on_the_input_that_opas_plugin_makes() {
        assert_eq!(ask(POLICY, "/api/x").await.unwrap().external.answer, Answer::Allowed);
        let no = ask(POLICY, "/other").await.unwrap().external.answer;
        assert!(matches!(no, Answer::Denied(_)), "{no:?}");
    }

    #[tokio::test]
    async fn an_endless_or_broken_policy_lets_nobody_in() {
        let slow = "package envoy.authz\nimport rego.v1\nallow if { some a in numbers.range(0, 3000); some b in numbers.range(0, 3000); a * b == -1 }";
        let failed = ask(slow, "/").await.unwrap().external.answer;
        assert!(matches!(failed, Answer::Failed(_)), "{failed:?}");
        let odd = "package envoy.authz\nimport rego.v1\nallow := 7";
        let failed = ask(odd, "/").await.unwrap().external.answer;
        assert!(matches!(failed, Answer::Failed(_)), "{failed:?}");
        let e = ask("package envoy.authz\nallow if {", "/").await.unwrap_err();
        assert!(e.contains("CS5001"), "{e}");
        let e = ask("package other\nimport rego.v1\nallow := true", "/").await.unwrap_err();
        assert!(e.contains("not defined"), "{e}");
    }
}
