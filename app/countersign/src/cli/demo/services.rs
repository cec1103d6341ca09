//! Two small services and a small client for them: plain HTTP/1.1 on loopback.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Answers each request with the identity that its sidecar vouches for.
pub(super) async fn serve(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let mut data = Vec::new();
            let mut buf = [0; 4096];
            loop {
                while !data.windows(4).any(|w| w == b"\r\n\r\n") {
                    match stream.read(&mut buf).await {
                        Ok(n) if n > 0 && data.len() < 64 << 10 => {
                            data.extend_from_slice(&buf[..n])
                        }
                        _ => return,
                    }
                }
                let head = String::from_utf8_lossy(&data).into_owned();
                data.clear();
                let caller = head
                    .lines()
                    .find_map(|l| l.strip_prefix("X-Forwarded-Client-Cert: "))
                    .and_then(|v| v.split(';').find_map(|p| p.strip_prefix("URI=")))
                    .unwrap_or("nobody");
                let body = format!("hello {caller}\n");
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// One GET on a connection of its own; status and body.
pub(super) async fn get(address: SocketAddr) -> Result<(u16, String), String> {
    let call = async {
        let mut stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        let request =
            format!("GET /hello HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| format!("no HTTP answer ({} bytes)", answer.len()))?;
        let body = text.split_once("\r\n\r\n").map(|(_, b)| b.to_owned()).unwrap_or_default();
        Ok((status, body))
    };
    tokio::time::timeout(Duration::from_secs(5), call)
        .await
        .map_err(|_| "no answer in 5 s".to_owned())?
}
