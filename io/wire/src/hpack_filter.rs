//! Lets gRPC clients built on C-core talk to us over Unix sockets.
//!
//! They send the socket's path, percent-encoded, as `:authority`; the HTTP/2 library refuses that as
//! malformed and resets every call. This filter sits between socket and library: it reads the frames
//! coming in, replaces `:authority` by `localhost` in header blocks, and passes everything else through.
//! Header blocks are re-encoded as literals without indexing, so the library's own table stays empty.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The largest frame a peer may send before we raise the limit, which we never do.
const MAX_FRAME: usize = 16 << 10;
/// Most bytes of one header block, compressed.
const MAX_BLOCK: usize = 64 << 10;
/// Most bytes of one header list, decompressed; HPACK can inflate a block a thousandfold.
const MAX_LIST: usize = 64 << 10;

/// Wraps a server-side stream; see the module's documentation.
pub struct AuthorityFilter<S> {
    stream: S,
    machine: Machine,
    /// Bytes ready for the reader.
    out: Vec<u8>,
    taken: usize,
}

impl<S> AuthorityFilter<S> {
    /// Wraps `stream`, which must not have been read from yet.
    pub fn new(stream: S) -> Self {
        Self { stream, machine: Machine::default(), out: Vec::new(), taken: 0 }
    }
}

/// The filter proper, free of IO: bytes in, bytes out.
struct Machine {
    state: State,
    decoder: loona_hpack::Decoder<'static>,
    /// Input that does not make a whole unit yet.
    pending: Vec<u8>,
    /// The header block being collected: stream, END_STREAM flag, bytes.
    block: Option<(u32, bool, Vec<u8>)>,
}

#[derive(Clone, Copy)]
enum State {
    Preface(usize),
    FrameHeader,
    /// Payload of a frame that is not ours to change.
    Pass(usize),
    /// Payload of HEADERS or CONTINUATION.
    Collect {
        kind: u8,
        flags: u8,
        stream: u32,
        len: usize,
    },
}

impl Default for Machine {
    fn default() -> Self {
        let mut decoder = loona_hpack::Decoder::new();
        decoder.set_max_allowed_table_size(4096);
        Self { state: State::Preface(PREFACE), decoder, pending: Vec::new(), block: None }
    }
}

/// Why a connection is given up.
#[derive(Debug, PartialEq, Eq)]
struct Broken(&'static str);

impl Machine {
    /// Feeds `input` and appends what may go on to `out`.
    fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        while !input.is_empty() {
            match self.state {
                State::Preface(left) => {
                    let n = left.min(input.len());
                    out.extend_from_slice(&input[..n]);
                    input = &input[n..];
                    self.state =
                        if n == left { State::FrameHeader } else { State::Preface(left - n) };
                }
                State::FrameHeader => {
                    let Some(header) = self.take(&mut input, FRAME_HEADER) else { break };
                    let len = usize::from(header[0]) << 16
                        | usize::from(header[1]) << 8
                        | usize::from(header[2]);
                    let (kind, flags) = (header[3], header[4]);
                    let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]])
                        & 0x7fff_ffff;
                    if len > MAX_FRAME {
                        return Err(Broken("frame is too large"));
                    }
                    if self.block.is_some() != (kind == CONTINUATION) {
                        return Err(Broken("header block is interrupted"));
                    }
                    if kind == HEADERS || kind == CONTINUATION {
                        self.state = State::Collect { kind, flags, stream, len };
                        if len == 0 {
                            self.collected(&[], out)?;
                        }
                    } else {
                        out.extend_from_slice(&header);
                        self.state = if len == 0 { State::FrameHeader } else { State::Pass(len) };
                    }
                }
                State::Pass(left) => {
                    let n = left.min(input.len());
                    out.extend_from_slice(&input[..n]);
                    input = &input[n..];
                    self.state = if n == left { State::FrameHeader } else { State::Pass(left - n) };
                }
                State::Collect { len, .. } => {
                    let Some(payload) = self.take(&mut input, len) else { break };
                    self.collected(&payload, out)?;
                }
            }
        }
        Ok(())
    }

    /// Takes exactly `n` bytes from what is pending and `input`, or keeps them for later.
    fn take(&mut self, input: &mut &[u8], n: usize) -> Option<Vec<u8>> {
        let more = (n - self.pending.len()).min(input.len());
        self.pending.extend_from_slice(&input[..more]);
        *input = &input[more..];
        (self.pending.len() == n).then(|| std::mem::take(&mut self.pending))
    }

    fn collected(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let State::Collect { kind, flags, stream, .. } = self.state else {
            return Err(Broken("no frame is open"));
        };
        self.state = State::FrameHeader;
        if kind == HEADERS {
            let fragment = strip_padding(payload, flags).ok_or(Broken("padding is malformed"))?;
            self.block = Some((stream, flags & END_STREAM != 0, fragment.to_vec()));
        } else {
            let Some((of, _, block)) = &mut self.block else {
                return Err(Broken("continuation without headers"));
            };
            if *of != stream || block.len() + payload.len() > MAX_BLOCK {
                return Err(Broken("header block is too large or mixed"));
            }
            block.extend_from_slice(payload);
        }
        if flags & END_HEADERS == 0 {
            return Ok(());
        }
        let Some((stream, end_stream, block)) = self.block.take() else {
            return Err(Broken("no header block is open"));
        };
        let encoded = self.rewrite(&block)?;
        emit(stream, end_stream, &encoded, out);
        Ok(())
    }

    fn rewrite(&mut self, block: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut encoded = Vec::with_capacity(block.len() + 64);
        let mut size = 0;
        self.decoder
            .decode_with_cb(block, |name, value| {
                size += name.len() + value.len() + 32;
                if size <= MAX_LIST {
                    let value: &[u8] = if *name == *b":authority" { b"localhost" } else { &value };
                    literal(&name, value, &mut encoded);
                }
            })
            .map_err(|_| Broken("header block is malformed"))?;
        if size > MAX_LIST {
            return Err(Broken("header list is too large"));
        }
        Ok(encoded)
    }
}

fn strip_padding(payload: &[u8], flags: u8) -> Option<&[u8]> {
    let (pad, rest) = if flags & PADDED != 0 {
        let (pad, rest) = payload.split_first()?;
        (usize::from(*pad), rest)
    } else {
        (0, payload)
    };
    let rest = if flags & PRIORITY != 0 { rest.get(5..)? } else { rest };
    rest.get(..rest.len().checked_sub(pad)?)
}

/// A literal without indexing, new name, no Huffman (RFC 7541 §6.2.2).
fn literal(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.push(0);
    for text in [name, value] {
        integer(text.len(), out);
        out.extend_from_slice(text);
    }
}

/// A 7-bit prefix integer (RFC 7541 §5.1).
fn integer(mut n: usize, out: &mut Vec<u8>) {
    if n < 0x7f {
        out.push(n as u8);
        return;
    }
    out.push(0x7f);
    n -= 0x7f;
    while n >= 0x80 {
        out.push((n % 0x80) as u8 | 0x80);
        n /= 0x80;
    }
    out.push(n as u8);
}

fn emit(stream: u32, end_stream: bool, block: &[u8], out: &mut Vec<u8>) {
    let mut chunks = block.chunks(MAX_FRAME).peekable();
    let mut kind = HEADERS;
    let mut flags = if end_stream { END_STREAM } else { 0 };
    loop {
        let chunk = chunks.next().unwrap_or_default();
        if chunks.peek().is_none() {
            flags |= END_HEADERS;
        }
        let len = (chunk.len() as u32).to_be_bytes();
        out.extend_from_slice(&len[1..]);
        out.push(kind);
        out.push(flags);
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(chunk);
        if flags & END_HEADERS != 0 {
            return;
        }
        kind = CONTINUATION;
        flags = 0;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityFilter<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.taken < this.out.len() {
                let n = buf.remaining().min(this.out.len() - this.taken);
                buf.put_slice(&this.out[this.taken..this.taken + n]);
                this.taken += n;
                if this.taken == this.out.len() {
                    this.out.clear();
                    this.taken = 0;
                }
                return Poll::Ready(Ok(()));
            }
            let mut raw = [0; 4096];
            let mut input = ReadBuf::new(&mut raw);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut input))?;
            if input.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.machine
                .feed(input.filled(), &mut this.out)
                .map_err(|Broken(why)| io::Error::new(io::ErrorKind::InvalidData, why))?;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthorityFilter<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Runs the filter over `input` cut at `cut`; for fuzzing. `None` if it gave up.
#[doc(hidden)]
pub fn filter_for_fuzzing(input: &[u8], cut: usize) -> Option<Vec<u8>> {
    let (mut machine, mut out) = (Machine::default(), Vec::new());
    let (a, b) = input.split_at(cut.min(input.len()));
    machine.feed(a, &mut out).ok()?;
    machine.feed(b, &mut out).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(payload);
        out
    }

    fn run(frames: &[Vec<u8>], step: usize) -> Result<Vec<u8>, Broken> {
        let mut input = vec![b'P'; PREFACE];
        input.extend(frames.concat());
        let (mut machine, mut out) = (Machine::default(), Vec::new());
        for chunk in input.chunks(step) {
            machine.feed(chunk, &mut out)?;
        }
        Ok(out[PREFACE.min(out.len())..].to_vec())
    }

    fn headers_of(out: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        assert_eq!(out[3], HEADERS);
        let len = u32::from_be_bytes([0, out[0], out[1], out[2]]) as usize;
        loona_hpack::Decoder::new().decode(&out[9..9 + len]).unwrap()
    }

    #[test]
    fn authority_is_replaced_and_the_rest_kept() {
        let mut encoder = loona_hpack::Encoder::new();
        let fields: [(&[u8], &[u8]); 3] =
            [(b":method", b"POST"), (b":authority", b"tmp%2Fdir%2Fx.sock"), (b"te", b"trailers")];
        let one = encoder.encode(fields);
        // The second block refers to the table that the first one filled.
        let two = encoder.encode(fields);
        let (a, b) = two.split_at(1);
        let mut padded = vec![3, 0, 0, 0, 0, 7];
        padded.extend(&one);
        padded.extend([0; 3]);
        let frames = [
            frame(4, 0, 0, &[]),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 1, &padded),
            frame(0, 1, 1, b"data"),
            frame(HEADERS, END_STREAM, 3, a),
            frame(CONTINUATION, END_HEADERS, 3, b),
        ];
        for step in [1, 2, 7, 4096] {
            let out = run(&frames, step).unwrap();
            assert_eq!(&out[..9], frame(4, 0, 0, &[]));
            let first = headers_of(&out[9..]);
            assert_eq!(first[1], (b":authority".to_vec(), b"localhost".to_vec()));
            assert_eq!(first[2].1, b"trailers");
            let tail = out.len() - (out.len() - 9) / 2;
            assert!(out[tail - 30..].windows(9).any(|w| w == b"localhost"), "second block too");
        }
    }

    #[test]
    fn hostile_frames_end_the_connection() {
        let huge = frame(0, 0, 1, &vec![0; MAX_FRAME + 1]);
        assert_eq!(run(&[huge], 4096), Err(Broken("frame is too large")));
        let orphan = frame(CONTINUATION, END_HEADERS, 1, &[]);
        assert_eq!(run(&[orphan], 4096), Err(Broken("header block is interrupted")));
        let open = frame(HEADERS, 0, 1, &[0x82]);
        let data = frame(0, 0, 1, b"x");
        assert_eq!(run(&[open, data], 4096), Err(Broken("header block is interrupted")));
        let pad = frame(HEADERS, END_HEADERS | PADDED, 1, &[200, 0x82]);
        assert_eq!(run(&[pad], 4096), Err(Broken("padding is malformed")));
        let bad = frame(HEADERS, END_HEADERS, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(run(&[bad], 4096), Err(Broken("header block is malformed")));
        let mut endless = vec![frame(HEADERS, 0, 1, &[0x82; 1000])];
        endless.extend((0..100).map(|_| frame(CONTINUATION, 0, 1, &[0x82; 1000])));
        assert!(run(&endless, 4096).is_err());
    }

    #[test]
    fn inflation_is_bounded() {
        let mut encoder = loona_hpack::Encoder::new();
        let big = vec![b'v'; 3000];
        let mut block = encoder.encode([(b"n".as_slice(), big.as_slice())]);
        // 0xbe refers to the newest table entry: one byte each for 3 KB.
        block.extend(std::iter::repeat_n(0xbe, 5000));
        let frames = [frame(HEADERS, END_HEADERS, 1, &block)];
        assert_eq!(run(&frames, 4096), Err(Broken("header list is too large")));
    }

    proptest! {
        #[test]
        fn any_bytes_any_cut(input in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let whole = filter_for_fuzzing(&input, 0);
            let parts = filter_for_fuzzing(&input, cut);
            prop_assert_eq!(whole, parts);
        }
    }
}
