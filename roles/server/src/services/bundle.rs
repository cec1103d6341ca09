//! Bundles.

use std::sync::Arc;

use countersign_wire::convert::from_bundle;
use countersign_wire::proto::spire::api::server::bundle::v1 as api;
use countersign_wire::proto::spire::api::types;
use countersign_wire::rpc::{Request, Response, Status};

use crate::shared::Shared;

pub(crate) struct Service(pub(crate) Arc<Shared>);

#[async_trait::async_trait]
impl api::bundle_server::Bundle for Service {
    async fn count_bundles(
        &self,
        request: Request<api::CountBundlesRequest>,
    ) -> Result<Response<api::CountBundlesResponse>, Status> {
        self.0.require_admin(&request)?;
        Ok(Response::new(api::CountBundlesResponse { count: 1 }))
    }

    /// For anyone: a bundle holds nothing secret, and a new agent needs it.
    async fn get_bundle(
        &self,
        request: Request<api::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let mask = request.into_inner().output_mask;
        Ok(Response::new(from_bundle(&self.0.authority.bundle(), mask.as_ref())))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<api::ListFederatedBundlesRequest>,
    ) -> Result<Response<api::ListFederatedBundlesResponse>, Status> {
        self.0.require_admin(&request)?;
        Ok(Response::new(api::ListFederatedBundlesResponse::default()))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<api::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        if self.0.require_admin(&request).is_err() {
            self.0.require_agent(&request).await?;
        }
        Err(Status::not_found("this server federates with no other trust domain"))
    }
}
