//! Generated from `proto/` by `cargo xtask protos`; the nesting is that of the packages.
#![allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]

/// The SPIFFE Workload API.
pub mod spiffe {
    include!("generated/_.rs");
}

/// SPIRE's server API.
pub mod spire {
    pub mod api {
        pub mod types {
            include!("generated/spire.api.types.rs");
        }
        pub mod server {
            pub mod agent {
                pub mod v1 {
                    include!("generated/spire.api.server.agent.v1.rs");
                }
            }
            pub mod entry {
                pub mod v1 {
                    include!("generated/spire.api.server.entry.v1.rs");
                }
            }
            pub mod bundle {
                pub mod v1 {
                    include!("generated/spire.api.server.bundle.v1.rs");
                }
            }
            pub mod svid {
                pub mod v1 {
                    include!("generated/spire.api.server.svid.v1.rs");
                }
            }
        }
    }
}

/// Envoy's secret discovery.
pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                include!("generated/envoy.config.core.v3.rs");
            }
        }
    }
    pub mod extensions {
        pub mod transport_sockets {
            pub mod tls {
                pub mod v3 {
                    include!("generated/envoy.extensions.transport_sockets.tls.v3.rs");
                }
            }
        }
    }
    pub mod service {
        pub mod auth {
            pub mod v3 {
                include!("generated/envoy.service.auth.v3.rs");
            }
        }
        pub mod discovery {
            pub mod v3 {
                include!("generated/envoy.service.discovery.v3.rs");
            }
        }
        pub mod secret {
            pub mod v3 {
                include!("generated/envoy.service.secret.v3.rs");
            }
        }
    }
}

pub mod google {
    pub mod rpc {
        include!("generated/google.rpc.rs");
    }
}

pub mod grpc {
    pub mod health {
        pub mod v1 {
            include!("generated/grpc.health.v1.rs");
        }
    }
}

/// Countersign's own services.
pub mod countersign {
    pub mod server {
        pub mod v1 {
            include!("generated/countersign.server.v1.rs");
        }
    }
    pub mod node {
        pub mod v1 {
            include!("generated/countersign.node.v1.rs");
        }
    }
}
