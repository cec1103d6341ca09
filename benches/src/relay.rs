//! CPU of relaying through an outbound and an inbound proxy: per request and per GiB.

use std::net::SocketAddr;
use std::time::Duration;

use countersign_proxy::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::envoy::Envoy;
use crate::kit::{Kit, bare, dial, own_cpu_us, show};

const CONNECTIONS: usize = 32;
const REQUESTS: usize = 400;
const BULK: usize = 256 << 20;
const ROUNDS: usize = 7;

/// Answers `GET /bulk` with a stream, everything else with 1 KiB.
fn origin() -> SocketAddr {
    bare("origin", |mut stream| async move {
        let mut data = Vec::new();
        let mut buf = vec![0; 16 << 10];
        let answer =
            [b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n".as_slice(), &[b'x'; 1024]].concat();
        loop {
            match stream.read(&mut buf).await {
                Ok(n) if n > 0 => data.extend_from_slice(&buf[..n]),
                _ => return,
            }
            while let Some(end) = data.windows(4).position(|w| w == b"\r\n\r\n") {
                let bulk = data.starts_with(b"GET /bulk");
                data.drain(..end + 4);
                if bulk {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BULK}\r\n\r\n");
                    if stream.write_all(head.as_bytes()).await.is_err() {
                        return;
                    }
                    let block = vec![b'x'; 64 << 10];
                    for _ in 0..BULK / block.len() {
                        if stream.write_all(&block).await.is_err() {
                            return;
                        }
                    }
                } else if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    })
}

async fn read_answer(stream: &mut TcpStream, buf: &mut [u8], body: usize) {
    let mut head = Vec::new();
    let mut got = loop {
        let n = stream.read(buf).await.expect("read");
        assert!(n > 0, "the connection ended: {}", String::from_utf8_lossy(&head));
        head.extend_from_slice(&buf[..n]);
        if let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
            break head.len() - end - 4;
        }
    };
    while got < body {
        let n = stream.read(buf).await.expect("read");
        assert!(n > 0, "cut after {got} of {body}");
        got += n;
    }
}

/// Requests over kept connections; the first of each is made before the count begins.
async fn requests(connections: &mut [TcpStream]) {
    let each = connections.iter_mut().map(|stream| async move {
        let mut buf = vec![0; 16 << 10];
        for _ in 0..REQUESTS {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("write");
            read_answer(stream, &mut buf, 1024).await;
        }
    });
    let mut all: Vec<_> = each.map(Box::pin).map(Some).collect();
    std::future::poll_fn(|cx| {
        for slot in &mut all {
            if let Some(f) = slot
                && f.as_mut().poll(cx).is_ready()
            {
                *slot = None;
            }
        }
        if all.iter().all(Option::is_none) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

async fn connections(address: SocketAddr) -> Vec<TcpStream> {
    let mut out = Vec::new();
    let mut buf = vec![0; 16 << 10];
    for _ in 0..CONNECTIONS {
        let mut stream = dial(address).await.expect("connect");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("write");
        read_answer(&mut stream, &mut buf, 1024).await;
        out.push(stream);
    }
    out
}

async fn bulk(address: SocketAddr) {
    let mut stream = dial(address).await.expect("connect");
    let mut buf = vec![0; 256 << 10];
    stream.write_all(b"GET /bulk HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("write");
    read_answer(&mut stream, &mut buf, BULK).await;
}

pub(crate) async fn run(envoy: Option<&str>) {
    let kit = Kit::new();
    let origin = origin();
    let tcp_in = kit.inbound(origin, Protocol::Tcp).await;
    let tcp = kit.outbound(tcp_in.addresses[0], Protocol::Tcp).await;
    let http_in = kit.inbound(origin, Protocol::Http).await;
    let http = kit.outbound(http_in.addresses[0], Protocol::Http).await;
    let yardstick = kit.bare_outbound(kit.bare_inbound(origin));
    let envoys: Vec<(&str, Envoy)> = match envoy {
        None => Vec::new(),
        Some(path) => vec![
            ("Envoy pair, TCP", Envoy::pair(path, &kit, origin, false)),
            ("Envoy pair, HTTP/1.1", Envoy::pair(path, &kit, origin, true)),
        ],
    };
    for (_, e) in &envoys {
        e.wait().await;
    }
    type Reading = Box<dyn Fn() -> f64>;
    let mut subjects: Vec<(&str, SocketAddr, Reading)> = vec![
        ("bare tokio + rustls pair", yardstick, Box::new(|| own_cpu_us("bare-"))),
        ("our pair, TCP", tcp.addresses[0], Box::new(|| own_cpu_us("proxy-"))),
        ("our pair, HTTP/1.1", http.addresses[0], Box::new(|| own_cpu_us("proxy-"))),
    ];
    for (name, e) in &envoys {
        let pids = e.pids();
        let reading = move || pids.iter().map(|p| crate::kit::cpu_us(*p, "")).sum();
        subjects.push((name, e.address, Box::new(reading)));
    }
    println!(
        "\nrelay through a pair, one thread each, 1 KiB answers, {CONNECTIONS} kept connections"
    );
    let mut pools = Vec::new();
    for (_, address, _) in &subjects {
        pools.push(connections(*address).await);
    }
    let mut per_request = vec![Vec::new(); subjects.len()];
    let mut per_gib = vec![Vec::new(); subjects.len()];
    for _ in 0..ROUNDS {
        for (i, (_, address, cpu)) in subjects.iter().enumerate() {
            let before = cpu();
            requests(&mut pools[i]).await;
            per_request[i].push((cpu() - before) / (CONNECTIONS * REQUESTS) as f64);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let before = cpu();
            bulk(*address).await;
            per_gib[i].push((cpu() - before) / 1000.0 * (f64::from(1 << 30) / BULK as f64));
        }
    }
    let mut floor = (0.0, 0.0);
    for (i, (name, ..)) in subjects.iter().enumerate() {
        let a = show(name, "us CPU a request", &mut per_request[i]);
        let b = show("", "ms CPU a GiB, one stream", &mut per_gib[i]);
        if i == 0 {
            floor = (a, b);
        } else {
            println!(
                "  ratio to the bare pair: {:.2} a request, {:.2} a GiB",
                a / floor.0,
                b / floor.1
            );
        }
    }
    if envoys.is_empty() {
        println!("  (Envoy was not measured: give --envoy PATH)");
    }
}
