//! Processes of the command under test, in a directory of their own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub struct Home {
    pub dir: TempDir,
}

/// A child that is killed when the test ends, however it ends.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub fn kill_9(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.0.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
}

impl Home {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_countersign"));
        c.args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("COUNTERSIGN_DATA_DIR", self.dir.path())
            .stdin(Stdio::null());
        c
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs and expects success; stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let mut args = args.to_vec();
        args.extend(["-o", "json"]);
        serde_json::from_str(&self.ok(&args)).unwrap()
    }

    /// Starts a long-running command and returns its first line of stdout, which says it is ready.
    /// The entries of workloads; the node's own lasting name is not one.
    pub fn entries(&self) -> Vec<Value> {
        let all = self.json(&["entry", "list"]);
        let all = all["entries"].as_array().unwrap().clone();
        all.into_iter().filter(|e| !e["spiffe_id"].as_str().unwrap().contains("/node/")).collect()
    }

    pub fn start(&self, args: &[&str]) -> (Running, Value) {
        let mut args = args.to_vec();
        args.extend(["-o", "json"]);
        let log = std::fs::File::create(self.dir.path().join(format!("log-{}", args[0]))).unwrap();
        let mut child = self.command(&args).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let running = Running(child);
        let log = || std::fs::read_to_string(self.dir.path().join(format!("log-{}", args[0])));
        let value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{args:?} said {line:?}\n{}", log().unwrap_or_default()));
        (running, value)
    }

    /// Starts a command whose output does not matter.
    pub fn spawn(&self, args: &[&str], log: &str) -> Running {
        let file = std::fs::File::create(self.path(log)).unwrap();
        let child = self.command(args).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Running(child)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

/// A port that is free.
/// Below what the kernel hands out by itself (32768 and up), so that no other test's connection takes it between this look
/// and its use; each is given once in a process, and processes begin in different places.
pub fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(997);
    for _ in 0..COUNT {
        let next = start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + next % COUNT).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {FIRST} on is free");
}

/// Tries until it works, for at most 20 s.
pub fn eventually<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(v) = f() {
            return v;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} did not happen in 20 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A small HTTP application; it answers with the identity headers it was given.
pub fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut writer = stream;
                loop {
                    let mut xfcc = "none".to_owned();
                    let mut line = String::new();
                    loop {
                        line.clear();
                        if reader.read_line(&mut line).unwrap_or(0) == 0 {
                            return;
                        }
                        if let Some(v) = line.strip_prefix("X-Forwarded-Client-Cert: ") {
                            xfcc = v.trim().to_owned();
                        }
                        if line.starts_with("x-sub: ") {
                            xfcc = format!("{xfcc}\n{}", line.trim());
                        }
                        if line == "\r\n" {
                            break;
                        }
                    }
                    let answer =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{xfcc}", xfcc.len());
                    if writer.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// One GET on a connection of its own.
pub fn get(address: &str) -> Result<String, String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream =
        TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .map_err(|e| e.to_string())?;
    let mut out = String::new();
    stream.read_to_string(&mut out).map_err(|e| e.to_string())?;
    if out.is_empty() { Err("empty".into()) } else { Ok(out) }
}

/// An application that answers nothing before `released`.
pub fn reluctant(released: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let released = Arc::clone(&released);
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                while !released.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(20));
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                let _ = stream.read(&mut [0; 4096]);
            });
        }
    });
    address
}

/// A library that gives whoever is started with it (LD_PRELOAD) a clock that is CLOCK_AHEAD seconds ahead.
pub fn other_clock() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // Kept until the process ends, as children are started with it.
        let dir = tempfile::tempdir().unwrap().keep();
        let source = dir.join("clock.c");
        std::fs::write(&source, CLOCK).unwrap();
        let library = dir.join("clock.so");
        let done = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .expect("a C compiler, as the build needs one too");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        library
    })
}

const CLOCK: &str = r#"
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *t) {
    int result = syscall(SYS_clock_gettime, id, t);
    const char *ahead = getenv("CLOCK_AHEAD");
    if (id == CLOCK_REALTIME && ahead) t->tv_sec += atol(ahead);
    return result;
}
"#;

/// Gives `serve` a listener, in a thread of its own, until the test ends; where it listens.
pub fn serving<F: Future<Output = ()>>(
    serve: impl FnOnce(tokio::net::TcpListener) -> F + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            serve(tokio::net::TcpListener::from_std(listener).unwrap()).await;
        });
    });
    address
}
