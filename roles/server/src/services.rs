//! The RPC services, one file each.

mod admin;
mod agent;
mod bundle;
mod changes;
mod entry;
mod health;
mod svid;

use std::sync::Arc;

use countersign_wire::proto::countersign::server::v1 as own;
use countersign_wire::proto::grpc::health::v1::health_server::HealthServer;
use countersign_wire::proto::spire::api::server as spire;
use countersign_wire::rpc::Routes;

use crate::shared::Shared;

/// What agents and remote administrators reach over TLS.
pub(crate) fn remote(shared: &Arc<Shared>) -> Routes {
    Routes::new(spire::agent::v1::agent_server::AgentServer::new(agent::Service(Arc::clone(
        shared,
    ))))
    .add_service(spire::entry::v1::entry_server::EntryServer::new(entry::Service(Arc::clone(
        shared,
    ))))
    .add_service(spire::bundle::v1::bundle_server::BundleServer::new(bundle::Service(Arc::clone(
        shared,
    ))))
    .add_service(spire::svid::v1::svid_server::SvidServer::new(svid::Service(Arc::clone(shared))))
    .add_service(own::changes_server::ChangesServer::new(changes::Service(Arc::clone(shared))))
}

/// The above and what only the admin socket offers.
pub(crate) fn local(shared: &Arc<Shared>) -> Routes {
    remote(shared)
        .add_service(own::admin_server::AdminServer::new(admin::Service(Arc::clone(shared))))
        .add_service(HealthServer::new(health::Service))
}

/// Pages of a sorted list: the items after `token`, at most `size` of them (0: all), and the token for
/// the next page.
fn page<T>(mut items: Vec<T>, size: i32, key: impl Fn(&T) -> String) -> (Vec<T>, String) {
    let size = usize::try_from(size).unwrap_or(0);
    if size == 0 || items.len() <= size {
        return (items, String::new());
    }
    items.truncate(size);
    let token = items.last().map(key).unwrap_or_default();
    (items, token)
}
