//! Where a body ends (RFC 9112 §6, §7).

/// How much of a message body is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Nothing is.
    Done,
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunk),
    /// Until the connection closes; only for responses.
    UntilClose,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Digits of the size so far.
    Size {
        value: u64,
        digits: u8,
    },
    /// LF after a size line; the size.
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// In the trailer section: bytes so far, and how far into the final CRLF.
    Trailer {
        seen: u16,
        line: TrailerLine,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrailerLine {
    Start,
    Inside,
    Cr,
    EndLf,
}

/// Longest trailer section, in bytes.
const MAX_TRAILER: u16 = 8192;

impl Framing {
    pub(crate) fn chunked() -> Self {
        Framing::Chunked(Chunk::Size { value: 0, digits: 0 })
    }

    pub(crate) fn length(n: u64) -> Self {
        if n == 0 { Framing::Done } else { Framing::Length(n) }
    }

    pub(crate) fn is_done(&self) -> bool {
        *self == Framing::Done
    }

    /// How many of `bytes` belong to this body; advances over them. An error means the framing is
    /// malformed and nothing after it can be believed.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        match self {
            Framing::Done => Ok(0),
            Framing::UntilClose => Ok(bytes.len()),
            Framing::Length(left) => {
                let n = (*left).min(bytes.len() as u64);
                *left -= n;
                if *left == 0 {
                    *self = Framing::Done;
                }
                Ok(n as usize)
            }
            Framing::Chunked(_) => self.advance_chunked(bytes),
        }
    }

    fn advance_chunked(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut i = 0;
        while i < bytes.len() {
            let Framing::Chunked(state) = self else { break };
            let b = bytes[i];
            let next = match state {
                Chunk::Size { value, digits } => match (b as char).to_digit(16) {
                    Some(_) if *digits >= 15 => return Err("chunk size is too large"),
                    Some(d) => {
                        Chunk::Size { value: *value << 4 | u64::from(d), digits: *digits + 1 }
                    }
                    None if *digits == 0 => return Err("chunk size is missing"),
                    None if b == b'\r' => Chunk::SizeLf(*value),
                    // Nothing in use sends extensions; those seen in the wild were part of attacks.
                    None if b == b';' => return Err("chunk extensions are not accepted"),
                    None => return Err("chunk size is malformed"),
                },
                Chunk::SizeLf(_) if b != b'\n' => return Err("chunk size line lacks LF"),
                Chunk::SizeLf(0) => Chunk::Trailer { seen: 0, line: TrailerLine::Start },
                Chunk::SizeLf(n) => Chunk::Data(*n),
                Chunk::Data(left) => {
                    let n = (*left).min((bytes.len() - i) as u64);
                    *left -= n;
                    i += n as usize;
                    if *left == 0 {
                        *state = Chunk::DataCr;
                    }
                    continue;
                }
                Chunk::DataCr if b == b'\r' => Chunk::DataLf,
                Chunk::DataLf if b == b'\n' => Chunk::Size { value: 0, digits: 0 },
                Chunk::DataCr | Chunk::DataLf => return Err("chunk data is not followed by CRLF"),
                Chunk::Trailer { seen, line } => {
                    if *seen >= MAX_TRAILER {
                        return Err("trailer section is too large");
                    }
                    let line = match (*line, b) {
                        (TrailerLine::Start, b'\r') => TrailerLine::EndLf,
                        (TrailerLine::EndLf, b'\n') => {
                            *self = Framing::Done;
                            return Ok(i + 1);
                        }
                        (TrailerLine::Inside, b'\r') => TrailerLine::Cr,
                        (TrailerLine::Cr, b'\n') => TrailerLine::Start,
                        (TrailerLine::Start | TrailerLine::Inside, b'\n' | 0) => {
                            return Err("trailer section is malformed");
                        }
                        (TrailerLine::EndLf | TrailerLine::Cr, _) => {
                            return Err("trailer section is malformed");
                        }
                        (TrailerLine::Start | TrailerLine::Inside, _) => TrailerLine::Inside,
                    };
                    Chunk::Trailer { seen: *seen + 1, line }
                }
            };
            *state = next;
            i += 1;
        }
        Ok(i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(input: &[u8], step: usize) -> Result<(usize, bool), &'static str> {
        let mut f = Framing::chunked();
        let mut total = 0;
        for chunk in input.chunks(step) {
            let n = f.advance(chunk)?;
            total += n;
            if n < chunk.len() || f.is_done() {
                break;
            }
        }
        Ok((total, f.is_done()))
    }

    #[test]
    fn chunked_bodies_end_where_they_end() {
        let body = b"5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nX-T: 1\r\n\r\nNEXT";
        for step in 1..body.len() {
            assert_eq!(run(body, step), Ok((body.len() - 4, true)), "step {step}");
        }
        assert_eq!(run(b"0\r\n\r\n", 1), Ok((5, true)));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for bad in [
            "\r\n",
            "x\r\n",
            "5\nhello",
            "5;a=b\r\nhello",
            "5\r\nhelloXX",
            "-1\r\n",
            "+5\r\n",
            "0x5\r\n",
            "1234567890123456\r\n",
            "0\r\n\n",
            "0\r\nX: 1\n\r\n",
            "5 \r\nhello\r\n",
        ] {
            assert!(run(bad.as_bytes(), 64).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(input in proptest::collection::vec(prop_oneof![Just(b'0'), Just(b'5'), Just(b'\r'), Just(b'\n'), Just(b'a')], 0..40), step in 1usize..8) {
            prop_assert_eq!(run(&input, step), run(&input, 64));
        }
    }
}
