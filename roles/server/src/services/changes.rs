//! Tells agents at once that something changed, so that they need not ask every few seconds.

use std::sync::Arc;
use std::time::Duration;

use countersign_tls::{current_time, current_time_ms};
use countersign_wire::proto::countersign::server::v1 as api;
use countersign_wire::rpc::{BoxStream, Request, Response, Status};
use tokio_stream::wrappers::ReceiverStream;

use crate::services::admin::policy_set;
use crate::shared::Shared;

/// The server's time is told this often, as clocks drift and are mended.
const TELL_TIME: Duration = Duration::from_secs(60);

pub(crate) struct Service(pub(crate) Arc<Shared>);

#[async_trait::async_trait]
impl api::changes_server::Changes for Service {
    type WatchStream = BoxStream<api::Generations>;

    /// The generations at once, then after each change. Ends when the agent's right to ask ends: its
    /// certificate expired, it was banned or evicted.
    async fn watch(
        &self,
        request: Request<api::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let arrived = current_time_ms();
        let agent = self.0.require_agent(&request).await?;
        let shared = Arc::clone(&self.0);
        let theirs = request.get_ref().time_ms;
        let told = shared.clocks.told(agent.id.as_str(), theirs, arrived);
        let (send, receive) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut entries = shared.registry.subscribe();
            let mut bundle = shared.authority.subscribe();
            let mut policies = shared.policies.subscribe();
            let life = agent.not_after.since(current_time()).max(Duration::from_secs(1));
            let end = tokio::time::sleep(life);
            tokio::pin!(end);
            let _told = told;
            loop {
                let now = api::Generations {
                    entries: *entries.borrow_and_update(),
                    bundle: *bundle.borrow_and_update(),
                    policies: *policies.borrow_and_update(),
                    time_ms: current_time_ms(),
                };
                if send.send(Ok(now)).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = entries.changed() => if changed.is_err() { return },
                    changed = bundle.changed() => if changed.is_err() { return },
                    changed = policies.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(TELL_TIME) => {}
                    () = send.closed() => return,
                    () = &mut end => return,
                }
                if shared.registry.agent(&agent.id).is_none_or(|a| a.banned) {
                    return;
                }
                // A burst of changes makes one message.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn policies(
        &self,
        request: Request<api::PoliciesRequest>,
    ) -> Result<Response<api::PolicySet>, Status> {
        self.0.require_agent(&request).await?;
        Ok(Response::new(policy_set(&self.0)))
    }
}
