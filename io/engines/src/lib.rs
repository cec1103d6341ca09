//! Asking external engines whether a request may go on: Envoy's ext_authz over gRPC and HTTP, OPA's REST
//! interface. Whatever goes wrong is an [`Answer`] that refuses; nothing here can fail open.

mod answer;
mod grpc;
mod http;
mod input;
mod opa;
#[cfg(feature = "rego")]
mod rego;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

#[cfg(not(feature = "rego"))]
use countersign_findings::Code;
use countersign_findings::Finding;
use countersign_policy::{Answer, Attributes, Edits, Engine, External, Provider};
use tokio::sync::Semaphore;

/// Questions that one engine is asked at once; more are refused, so that a slow engine holds no more than
/// this many requests.
const MAX_QUESTIONS: usize = 1024;

/// One request or connection to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// What is known about it. Header fields are those that policies see.
    pub attributes: Attributes<'a>,
    /// The caller's port.
    pub source_port: u16,
    /// The identity that is called.
    pub own_id: &'a str,
    /// The query, without `?`.
    pub query: &'a str,
    /// `HTTP/1.1` and the like.
    pub protocol: &'a str,
    /// Names the connection in logs of both sides.
    pub id: &'a str,
    /// Since the epoch.
    pub now: Duration,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// For the decision.
    pub external: External,
    /// What to change about an allowed request.
    pub edits: Edits,
    /// What to tell the client of a refused one.
    pub refusal: Option<Refusal>,
}

/// What a refused client is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// 300 to 599.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Bounded.
    pub body: Vec<u8>,
}

/// The engines that policies can name.
#[derive(Debug, Default)]
pub struct Engines {
    by_name: HashMap<Arc<str>, Asker>,
}

#[derive(Debug)]
struct Asker {
    provider: Provider,
    client: Client,
    places: Semaphore,
}

#[derive(Debug)]
enum Client {
    Grpc(grpc::Client),
    Http(http::Client),
    #[cfg(feature = "rego")]
    Rego(Box<rego::Evaluator>),
}

impl Engines {
    /// Reads what Rego needs; connects to nobody yet.
    pub fn new(providers: Vec<Provider>) -> Result<Self, Finding> {
        let asker = |provider: Provider| {
            let client = match &provider.engine {
                #[cfg(feature = "rego")]
                Engine::Rego { files, data, query } => {
                    let data = data.as_deref();
                    let evaluator = rego::Evaluator::new(files, data, query, provider.timeout)?;
                    Client::Rego(Box::new(evaluator))
                }
                #[cfg(not(feature = "rego"))]
                Engine::Rego { .. } => {
                    let text =
                        format!("provider `{}`: this binary was built without Rego", provider.name);
                    return Err(Finding::new(Code::EngineMisconfigured, text)
                        .hint("build it with `--features rego`, or run OPA and use `opa`"));
                }
                Engine::ExtAuthzGrpc { target } => Client::Grpc(grpc::Client::new(target)),
                Engine::ExtAuthzHttp(check) => Client::Http(http::Client::new(&check.target)),
                Engine::Opa { target, .. } => Client::Http(http::Client::new(target)),
            };
            let name = Arc::clone(&provider.name);
            Ok((name, Asker { provider, client, places: Semaphore::new(MAX_QUESTIONS) }))
        };
        Ok(Self { by_name: providers.into_iter().map(asker).collect::<Result<_, Finding>>()? })
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(|n| &**n)
    }

    /// Asks `provider`. Answers within its timeout.
    pub async fn ask(&self, provider: &Arc<str>, question: &Question<'_>) -> Reply {
        let Some(asker) = self.by_name.get(provider) else {
            let why = "no provider of that name is described".to_owned();
            return Reply::of(provider, Answer::Misconfigured(why), None);
        };
        let refusal = || {
            let status = asker.provider.status_on_error;
            Some(Refusal { status, ..Refusal::default() })
        };
        let Ok(_place) = asker.places.try_acquire() else {
            let why = format!("{MAX_QUESTIONS} questions wait for it already");
            return Reply::of(provider, Answer::Failed(why), refusal());
        };
        let timeout = asker.provider.timeout;
        match tokio::time::timeout(timeout, asker.ask(question)).await {
            Ok(Ok((answer, edits, refusal))) => {
                let external = External { provider: Arc::clone(provider), answer };
                Reply { external, edits, refusal }
            }
            Ok(Err(why)) => Reply::of(provider, Answer::Failed(why), refusal()),
            Err(_) => {
                let why = format!("nothing came within {} ms", timeout.as_millis());
                Reply::of(provider, Answer::Failed(why), refusal())
            }
        }
    }
}

impl Reply {
    fn of(provider: &Arc<str>, answer: Answer, refusal: Option<Refusal>) -> Self {
        let external = External { provider: Arc::clone(provider), answer };
        Self { external, edits: Edits::default(), refusal }
    }
}

/// An answer with what goes with it, or why there is none.
type Outcome = Result<(Answer, Edits, Option<Refusal>), String>;

impl Asker {
    async fn ask(&self, question: &Question<'_>) -> Outcome {
        match (&self.client, &self.provider.engine) {
            (Client::Grpc(client), _) => client.check(question).await,
            (Client::Http(client), Engine::ExtAuthzHttp(check)) => {
                client.check(check, question).await
            }
            (Client::Http(client), Engine::Opa { path, .. }) => {
                opa::ask(client, path, question).await
            }
            #[cfg(feature = "rego")]
            (Client::Rego(evaluator), _) => evaluator.ask(question).await,
            (Client::Http(_), _) => Err("it is asked in another way".into()),
        }
    }
}
