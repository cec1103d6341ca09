//! gRPC health checking.

use countersign_wire::proto::grpc::health::v1::health_check_response::ServingStatus;
use countersign_wire::proto::grpc::health::v1::health_server::Health;
use countersign_wire::proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use countersign_wire::rpc::{BoxStream, Request, Response, Status};

pub(crate) struct Service;

fn serving(request: &HealthCheckRequest) -> Result<HealthCheckResponse, Status> {
    if request.service.is_empty() {
        Ok(HealthCheckResponse { status: ServingStatus::Serving as i32 })
    } else {
        Err(Status::not_found("only the empty service name is known"))
    }
}

#[async_trait::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        serving(request.get_ref()).map(Response::new)
    }

    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        use tokio_stream::StreamExt;
        let first = serving(request.get_ref())?;
        // Serving from the first message on; the stream ends with the server.
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(first)).chain(tokio_stream::pending()))))
    }
}
