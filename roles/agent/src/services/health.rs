//! gRPC health checking: serving once entries are known.

use std::sync::Arc;

use countersign_wire::proto::grpc::health::v1::health_check_response::ServingStatus;
use countersign_wire::proto::grpc::health::v1::health_server::Health;
use countersign_wire::proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use countersign_wire::rpc::{BoxStream, Request, Response, Status};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;

use super::Shared;

pub(crate) struct Service(pub(crate) Arc<Shared>);

fn status(ready: bool) -> HealthCheckResponse {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status as i32 }
}

#[async_trait::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("only the empty service name is known"));
        }
        Ok(Response::new(status(self.0.state().ready)))
    }

    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let slot = self.0.stream_slot()?;
        let mut last = None;
        let stream = WatchStream::new(self.0.state.clone()).filter_map(move |state| {
            let _slot = &slot;
            (last.replace(state.ready) != Some(state.ready)).then(|| Ok(status(state.ready)))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
