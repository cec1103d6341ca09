//! From compressed bytes to a tar file, within bounds.

use std::io::{self, Read};

use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// Most bytes of one archive, unpacked: a larger one is told of, and not passed over in silence.
const MAX_UNPACKED: u64 = 8 << 30;
/// Compression of what is compressed: once is usual.
const MAX_WRAPS: usize = 2;
/// Largest window of Zstandard that is given memory to.
const MAX_WINDOW: u64 = 128 << 20;

/// What a stream is, by its first bytes.
pub(super) enum Form {
    Tar,
    Gzip,
    Zstd,
    Other,
}

pub(super) fn form(head: &[u8]) -> Form {
    match head {
        [0x1f, 0x8b, ..] => Form::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Form::Zstd,
        _ if is_tar(head) => Form::Tar,
        _ => Form::Other,
    }
}

/// By its magic, or, where it is older than that, by the sum of its first header.
fn is_tar(head: &[u8]) -> bool {
    if head.get(257..262) == Some(b"ustar") {
        return true;
    }
    let (Some(header), Some(field)) = (head.get(..512), head.get(148..156)) else { return false };
    let digits: String =
        field.iter().map(|b| char::from(*b)).filter(|c| c.is_digit(8)).take(7).collect();
    let Ok(told) = u64::from_str_radix(&digits, 8) else { return false };
    let sum: u64 = header.iter().map(|b| u64::from(*b)).sum();
    let of_field: u64 = field.iter().map(|b| u64::from(*b)).sum();
    told == sum - of_field + 8 * u64::from(b' ')
}

/// Up to 512 bytes from the beginning; what follows is still in the stream.
pub(super) fn head(stream: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(512);
    stream.take(512).read_to_end(&mut head)?;
    Ok(head)
}

/// The tar file in a stream, if there is one.
pub(super) fn unpacked(mut stream: Box<dyn Read + '_>) -> io::Result<Option<Bounded<'_>>> {
    for _ in 0..=MAX_WRAPS {
        let head = head(&mut *stream)?;
        let form = form(&head);
        let whole = io::Cursor::new(head).chain(stream);
        stream = match form {
            Form::Tar => return Ok(Some(Bounded { stream: Box::new(whole), left: MAX_UNPACKED })),
            Form::Gzip => Box::new(flate2::read::MultiGzDecoder::new(whole)),
            Form::Zstd => Box::new(Frames(Some(Frame::Between(Box::new(whole))))),
            Form::Other => return Ok(None),
        };
    }
    Err(io::Error::other("compressed again and again"))
}

/// A stream that ends in an error when too much has come of it.
pub(super) struct Bounded<'a> {
    stream: Box<dyn Read + 'a>,
    left: u64,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(buf)?;
        self.left = self.left.saturating_sub(n as u64);
        if self.left == 0 {
            let what = format!("more than {} GiB unpacked", MAX_UNPACKED >> 30);
            return Err(io::Error::other(what));
        }
        Ok(n)
    }
}

/// Zstandard frame after frame (RFC 8878 section 3), those to be skipped too: the library reads one.
struct Frames<'a>(Option<Frame<'a>>);

enum Frame<'a> {
    Between(Box<dyn Read + 'a>),
    Within(Box<StreamingDecoder<Box<dyn Read + 'a>, FrameDecoder>>),
}

impl Read for Frames<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.0.take() {
                None => return Ok(0),
                Some(Frame::Within(mut decoder)) => match decoder.read(buf)? {
                    0 => self.0 = Some(Frame::Between(decoder.into_inner())),
                    n => {
                        self.0 = Some(Frame::Within(decoder));
                        return Ok(n);
                    }
                },
                Some(Frame::Between(mut stream)) => {
                    let mut magic = Vec::with_capacity(4);
                    (&mut *stream).take(4).read_to_end(&mut magic)?;
                    match magic.as_slice() {
                        [] => return Ok(0),
                        [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                            let mut length = [0; 4];
                            stream.read_exact(&mut length)?;
                            let length = u64::from(u32::from_le_bytes(length));
                            io::copy(&mut (&mut *stream).take(length), &mut io::sink())?;
                            self.0 = Some(Frame::Between(stream));
                        }
                        _ => {
                            let whole: Box<dyn Read> =
                                Box::new(io::Cursor::new(magic).chain(stream));
                            let decoder =
                                StreamingDecoder::new_with_max_window_size(whole, MAX_WINDOW)
                                    .map_err(io::Error::other)?;
                            self.0 = Some(Frame::Within(Box::new(decoder)));
                        }
                    }
                }
            }
        }
    }
}
