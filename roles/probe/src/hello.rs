//! The first messages of a handshake, by hand: TLS libraries of today no longer offer what has to be asked for
//! here. Nothing but the server's choice is read, so no cryptography is needed. RFC 8446 section 4.1, RFC 5246
//! section 7.4.1.

/// `TLSv1.0` to `TLSv1.3` on the wire.
pub(crate) const TLS10: u16 = 0x0301;
pub(crate) const TLS11: u16 = 0x0302;
pub(crate) const TLS12: u16 = 0x0303;
pub(crate) const TLS13: u16 = 0x0304;

pub(crate) const X25519: u16 = 0x001d;
pub(crate) const X25519MLKEM768: u16 = 0x11ec;

/// What a server with old versions takes: suites of every kind of key that are not weak in themselves.
pub(crate) const USUAL: &[u16] = &[
    0xc02b, 0xc02c, 0xc02f, 0xc030, 0xcca8, 0xcca9, 0xc009, 0xc00a, 0xc013, 0xc014, 0x009c, 0x009d,
    0x002f, 0x0035, 0x0033, 0x0039,
];

/// Suites of TLS 1.3.
pub(crate) const SUITES13: &[u16] = &[0x1301, 0x1302, 0x1303];

/// Suites that nobody should take: without encryption or authentication, for export, RC4, DES, 3DES.
pub(crate) const WEAK: &[(u16, &str)] = &[
    (0x0001, "RSA_WITH_NULL_MD5"),
    (0x0002, "RSA_WITH_NULL_SHA"),
    (0x003b, "RSA_WITH_NULL_SHA256"),
    (0xc001, "ECDH_ECDSA_WITH_NULL_SHA"),
    (0xc006, "ECDHE_ECDSA_WITH_NULL_SHA"),
    (0xc010, "ECDHE_RSA_WITH_NULL_SHA"),
    (0xc015, "ECDH_anon_WITH_NULL_SHA"),
    (0x0003, "RSA_EXPORT_WITH_RC4_40_MD5"),
    (0x0006, "RSA_EXPORT_WITH_RC2_CBC_40_MD5"),
    (0x0008, "RSA_EXPORT_WITH_DES40_CBC_SHA"),
    (0x0004, "RSA_WITH_RC4_128_MD5"),
    (0x0005, "RSA_WITH_RC4_128_SHA"),
    (0xc007, "ECDHE_ECDSA_WITH_RC4_128_SHA"),
    (0xc011, "ECDHE_RSA_WITH_RC4_128_SHA"),
    (0x0009, "RSA_WITH_DES_CBC_SHA"),
    (0x0015, "DHE_RSA_WITH_DES_CBC_SHA"),
    (0x000a, "RSA_WITH_3DES_EDE_CBC_SHA"),
    (0x0016, "DHE_RSA_WITH_3DES_EDE_CBC_SHA"),
    (0xc008, "ECDHE_ECDSA_WITH_3DES_EDE_CBC_SHA"),
    (0xc012, "ECDHE_RSA_WITH_3DES_EDE_CBC_SHA"),
    (0x0018, "DH_anon_WITH_RC4_128_MD5"),
    (0x001b, "DH_anon_WITH_3DES_EDE_CBC_SHA"),
    (0x0034, "DH_anon_WITH_AES_128_CBC_SHA"),
    (0x003a, "DH_anon_WITH_AES_256_CBC_SHA"),
    (0x00a6, "DH_anon_WITH_AES_128_GCM_SHA256"),
    (0xc018, "ECDH_anon_WITH_AES_128_CBC_SHA"),
    (0xc019, "ECDH_anon_WITH_AES_256_CBC_SHA"),
];

/// What to ask for.
pub(crate) struct Hello<'a> {
    pub(crate) version: u16,
    pub(crate) suites: &'a [u16],
    pub(crate) groups: &'a [u16],
    /// A DNS name, or nothing.
    pub(crate) server_name: Option<&'a str>,
    pub(crate) random: [u8; 32],
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The server goes on.
    Chosen {
        version: u16,
        suite: u16,
        /// The group, where TLS 1.3 names it.
        group: Option<u16>,
    },
    /// It refuses.
    Alert(u8),
    /// Not all of it is here yet.
    Incomplete,
    /// Not TLS.
    Other,
}

/// Longest message that is read. A HelloRetryRequest has the form of a ServerHello (RFC 8446 section 4.1.4), and the
/// choice in it counts as well.
const MAX_ANSWER: usize = 1 << 14;

fn put16(out: &mut Vec<u8>, n: usize) {
    out.extend_from_slice(&u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes());
}

fn extension(out: &mut Vec<u8>, kind: u16, body: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    put16(out, body.len());
    out.extend_from_slice(body);
}

fn list16(values: &[u16]) -> Vec<u8> {
    let mut out = Vec::new();
    put16(&mut out, values.len() * 2);
    values.iter().for_each(|v| out.extend_from_slice(&v.to_be_bytes()));
    out
}

impl Hello<'_> {
    /// One record.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        if let Some(name) = self.server_name {
            let mut list = vec![0];
            put16(&mut list, name.len());
            list.extend_from_slice(name.as_bytes());
            let mut body = Vec::new();
            put16(&mut body, list.len());
            body.extend_from_slice(&list);
            extension(&mut extensions, 0, &body);
        }
        extension(&mut extensions, 10, &list16(self.groups));
        extension(&mut extensions, 11, &[1, 0]);
        if self.version >= TLS12 {
            let schemes = [0x0403, 0x0503, 0x0804, 0x0805, 0x0807, 0x0401, 0x0501, 0x0203, 0x0201];
            extension(&mut extensions, 13, &list16(&schemes));
        }
        if self.version >= TLS13 {
            let mut versions = vec![2];
            versions.extend_from_slice(&TLS13.to_be_bytes());
            extension(&mut extensions, 43, &versions);
            // No share: the server answers with the group it would like.
            extension(&mut extensions, 51, &[0, 0]);
        }
        let mut body = self.version.min(TLS12).to_be_bytes().to_vec();
        body.extend_from_slice(&self.random);
        body.push(0);
        body.extend_from_slice(&list16(self.suites));
        body.extend_from_slice(&[1, 0]);
        put16(&mut body, extensions.len());
        body.extend_from_slice(&extensions);
        let mut record = vec![22, 3, 1];
        put16(&mut record, body.len() + 4);
        record.push(1);
        let length = u32::try_from(body.len()).unwrap_or(0).to_be_bytes();
        record.extend_from_slice(&length[1..]);
        record.extend_from_slice(&body);
        record
    }
}

/// A reader that never runs past its end.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u16(&mut self) -> Option<u16> {
        let b = self.take(2)?;
        Some(u16::from_be_bytes([b[0], b[1]]))
    }

    fn u24(&mut self) -> Option<usize> {
        let b = self.take(3)?;
        Some(usize::from(b[0]) << 16 | usize::from(b[1]) << 8 | usize::from(b[2]))
    }
}

/// Reads what has come so far.
pub(crate) fn read(data: &[u8]) -> Answer {
    let mut handshake = Vec::new();
    let mut rest = Bytes(data);
    loop {
        if !matches!(rest.0.first(), None | Some(21 | 22)) {
            return Answer::Other;
        }
        let (Some(kind), Some(version), Some(length)) = (rest.u8(), rest.u16(), rest.u16()) else {
            break;
        };
        if version >> 8 != 3 || usize::from(length) > MAX_ANSWER + 256 {
            return Answer::Other;
        }
        let Some(body) = rest.take(usize::from(length)) else { break };
        if kind == 21 {
            return body.get(1).map_or(Answer::Other, |alert| Answer::Alert(*alert));
        }
        handshake.extend_from_slice(body);
        match chosen(&handshake) {
            Some(answer) => return answer,
            None if handshake.len() > MAX_ANSWER => return Answer::Other,
            None => {}
        }
    }
    Answer::Incomplete
}

/// `None` as long as the message is not whole.
fn chosen(message: &[u8]) -> Option<Answer> {
    let mut outer = Bytes(message);
    let kind = outer.u8()?;
    let length = outer.u24()?;
    if kind != 2 || length > MAX_ANSWER {
        return Some(Answer::Other);
    }
    let body = outer.take(length)?;
    Some(server_hello(body).unwrap_or(Answer::Other))
}

fn server_hello(body: &[u8]) -> Option<Answer> {
    let mut b = Bytes(body);
    let mut version = b.u16()?;
    b.take(32)?;
    let session = b.u8()?;
    b.take(usize::from(session))?;
    let suite = b.u16()?;
    b.u8()?;
    let mut group = None;
    if !b.0.is_empty() {
        let length = b.u16()?;
        let mut extensions = Bytes(b.take(usize::from(length))?);
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let length = extensions.u16()?;
            let mut value = Bytes(extensions.take(usize::from(length))?);
            match kind {
                43 => version = value.u16()?,
                51 => group = Some(value.u16()?),
                _ => {}
            }
        }
    }
    Some(Answer::Chosen { version, suite, group })
}

/// The name of an alert (RFC 8446 section 6), as the TLS library writes it.
pub(crate) fn alert_name(alert: u8) -> &'static str {
    match alert {
        0 => "CloseNotify",
        10 => "UnexpectedMessage",
        40 => "HandshakeFailure",
        42 => "BadCertificate",
        45 => "CertificateExpired",
        46 => "CertificateUnknown",
        47 => "IllegalParameter",
        48 => "UnknownCA",
        49 => "AccessDenied",
        50 => "DecodeError",
        70 => "ProtocolVersion",
        71 => "InsufficientSecurity",
        80 => "InternalError",
        112 => "UnrecognizedName",
        116 => "CertificateRequired",
        _ => "an alert",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(version: [u8; 2], suite: [u8; 2], extensions: &[u8]) -> Vec<u8> {
        let mut body = version.to_vec();
        body.extend([7; 32]);
        body.push(0);
        body.extend(suite);
        body.push(0);
        if !extensions.is_empty() {
            put16(&mut body, extensions.len());
            body.extend(extensions);
        }
        let mut message = vec![2, 0, 0, u8::try_from(body.len()).unwrap()];
        message.extend(body);
        let mut record = vec![22, 3, 3];
        put16(&mut record, message.len());
        record.extend(message);
        record
    }

    #[test]
    fn choices_are_read() {
        let old = answer([3, 1], [0xc0, 0x0a], &[]);
        let chosen = Answer::Chosen { version: TLS10, suite: 0xc00a, group: None };
        assert_eq!(read(&old), chosen);
        for end in 0..old.len() {
            assert_eq!(read(&old[..end]), Answer::Incomplete, "{end}");
        }
        let new = answer([3, 3], [0x13, 1], &[0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0x11, 0xec]);
        let group = Some(X25519MLKEM768);
        assert_eq!(read(&new), Answer::Chosen { version: TLS13, suite: 0x1301, group });
        // The message may come in two records.
        let mut split = old[..20].to_vec();
        split[3..5].copy_from_slice(&15_u16.to_be_bytes());
        split.extend([22, 3, 3]);
        put16(&mut split, old.len() - 20);
        split.extend(&old[20..]);
        assert_eq!(read(&split), chosen);
    }

    #[test]
    fn refusals_and_strangers() {
        assert_eq!(read(&[21, 3, 3, 0, 2, 2, 70]), Answer::Alert(70));
        assert_eq!(read(b"HTTP/1.1 400 Bad Request"), Answer::Other);
        assert_eq!(read(&[22, 9, 9, 0, 1, 0]), Answer::Other);
        assert_eq!(read(&[22, 3, 3, 0, 4, 2, 0, 0, 0]), Answer::Other, "an empty ServerHello");
    }

    #[test]
    fn a_hello_has_its_lengths_right() {
        let all: Vec<u16> = WEAK.iter().map(|(s, _)| *s).collect();
        for version in [TLS10, TLS12, TLS13] {
            let groups = &[X25519, 0x17];
            let name = Some("localhost");
            let hello = Hello { version, suites: &all, groups, server_name: name, random: [1; 32] };
            let bytes = hello.encode();
            let record = usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
            assert_eq!(record + 5, bytes.len());
            assert_eq!(Bytes(&bytes[6..]).u24().unwrap() + 9, bytes.len());
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_comes_breaks_the_reader(
            mut data in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
            at in 0_usize..60,
            value in proptest::prelude::any::<u8>(),
        ) {
            let _ = read(&data);
            if let Some(first) = data.first_mut() {
                *first = 22;
            }
            let _ = read(&data);
            let mut near = answer([3, 3], [0x13, 1], &[0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0x11, 0xec]);
            if let Some(byte) = near.get_mut(at) {
                *byte = value;
            }
            let _ = read(&near);
        }
    }
}
