//! `cargo run --release -p countersign-bench [-- --envoy PATH] [NAME…]`
//!
//! Every figure stands beside a peer or a floor measured in the same run, turn by turn; only ratios are
//! evidence. CPU is what the kernel charged to the threads of the thing measured, not time.

mod envoy;
mod handshake;
mod issuance;
mod kit;
mod memory;
mod policy;
mod relay;

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let envoy = args.iter().position(|a| a == "--envoy").map(|i| {
        args.remove(i);
        args.remove(i)
    });
    let wanted = |name: &str| args.is_empty() || args.iter().any(|a| a == name);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("bench-client")
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        if wanted("handshake") {
            handshake::run().await;
        }
        if wanted("relay") {
            relay::run(envoy.as_deref()).await;
        }
        if wanted("issuance") {
            issuance::run().await;
        }
        if wanted("policy") {
            policy::run();
        }
        if wanted("memory") {
            memory::run().await;
        }
    });
}
