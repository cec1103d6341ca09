//! Envoy as a peer: an outbound and an inbound process, one worker each, files for certificates.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::kit::{Kit, dial};

pub(crate) struct Envoy {
    pub(crate) address: SocketAddr,
    children: Vec<Child>,
}

fn free() -> SocketAddr {
    std::net::TcpListener::bind(crate::kit::any()).and_then(|l| l.local_addr()).expect("free port")
}

fn endpoint(a: SocketAddr) -> String {
    format!(r#"{{"socket_address":{{"address":"{}","port_value":{}}}}}"#, a.ip(), a.port())
}

impl Envoy {
    pub(crate) fn pair(path: &str, kit: &Kit, origin: SocketAddr, http: bool) -> Self {
        let (near, far) = (free(), free());
        let dir = kit.dir.path().display().to_string();
        let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
        let context = format!(
            r#""common_tls_context":{{"tls_params":{{"tls_minimum_protocol_version":"TLSv1_3","tls_maximum_protocol_version":"TLSv1_3"}},
            "tls_certificates":[{{"certificate_chain":{{"filename":"{dir}/cert.pem"}},"private_key":{{"filename":"{dir}/key.pem"}}}}],
            "validation_context":{{"trusted_ca":{{"filename":"{dir}/bundle.pem"}}}}}}"#
        );
        let down = format!(
            r#","transport_socket":{{"name":"tls","typed_config":{{"@type":"{tls}.DownstreamTlsContext","require_client_certificate":true,{context}}}}}"#
        );
        let up = format!(
            r#","transport_socket":{{"name":"tls","typed_config":{{"@type":"{tls}.UpstreamTlsContext",{context}}}}}"#
        );
        let mut children = Vec::new();
        for (i, (listen, to, down, up)) in
            [(far, origin, down.as_str(), ""), (near, far, "", up.as_str())].into_iter().enumerate()
        {
            let filters = "type.googleapis.com/envoy.extensions.filters";
            let filter = if http {
                format!(
                    r#"{{"name":"http","typed_config":{{"@type":"{filters}.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"b",
                    "http_filters":[{{"name":"envoy.filters.http.router","typed_config":{{"@type":"{filters}.http.router.v3.Router"}}}}],
                    "route_config":{{"virtual_hosts":[{{"name":"a","domains":["*"],"routes":[{{"match":{{"prefix":"/"}},"route":{{"cluster":"to","timeout":"0s"}}}}]}}]}}}}}}"#
                )
            } else {
                format!(
                    r#"{{"name":"tcp","typed_config":{{"@type":"{filters}.network.tcp_proxy.v3.TcpProxy","stat_prefix":"b","cluster":"to"}}}}"#
                )
            };
            let config = format!(
                r#"{{"static_resources":{{"listeners":[{{"address":{},"filter_chains":[{{"filters":[{filter}]{down}}}]}}],
                "clusters":[{{"name":"to","type":"STATIC","load_assignment":{{"cluster_name":"to","endpoints":[{{"lb_endpoints":[{{"endpoint":{{"address":{}}}}}]}}]}}{up}}}]}}}}"#,
                endpoint(listen),
                endpoint(to)
            );
            let file = kit.dir.path().join(format!("envoy-{http}-{i}.json"));
            std::fs::write(&file, config).expect("config");
            let base_id = 1000 + (std::process::id() % 1000) * 4 + u32::from(http) * 2 + i as u32;
            let child = Command::new(path)
                .args([
                    "--concurrency",
                    "1",
                    "-l",
                    "error",
                    "--base-id",
                    &base_id.to_string(),
                    "-c",
                ])
                .arg(&file)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("envoy starts");
            children.push(child);
        }
        Self { address: near, children }
    }

    pub(crate) async fn wait(&self) {
        for _ in 0..200 {
            if dial(self.address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("Envoy does not listen");
    }

    /// The processes; the package's launcher replaces itself by Envoy or has it as its child.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut out: Vec<u32> = self.children.iter().map(Child::id).collect();
        for parent in out.clone() {
            let children =
                std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
            out.extend(
                children
                    .unwrap_or_default()
                    .split_whitespace()
                    .filter_map(|p| p.parse::<u32>().ok()),
            );
        }
        out
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        for pid in self.pids() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}
