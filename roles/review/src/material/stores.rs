//! Key stores, as far as they can be read without their password.

/// Private key entries of a JKS or JCEKS file (tag 1), as far as its structure can be followed.
pub(super) fn java_private_keys(bytes: &[u8]) -> usize {
    let mut at = 8;
    let u32_at = |at: usize| {
        bytes.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize)
    };
    let u16_at =
        |at: usize| bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]) as usize);
    let mut keys = 0;
    let Some(count) = u32_at(at) else { return 0 };
    at += 4;
    for _ in 0..count.min(10_000) {
        let Some(tag) = u32_at(at) else { break };
        let Some(alias) = u16_at(at + 4) else { break };
        at += 6 + alias + 8;
        let certificates = match tag {
            1 => {
                keys += 1;
                let Some(length) = u32_at(at) else { break };
                at += 4 + length;
                let Some(n) = u32_at(at) else { break };
                at += 4;
                n
            }
            2 => 1,
            // A secret key, which only Java can measure.
            _ => return keys + 1,
        };
        for _ in 0..certificates.min(100) {
            let Some(kind) = u16_at(at) else { return keys };
            let Some(length) = u32_at(at + 2 + kind) else { return keys };
            at += 2 + kind + 4 + length;
        }
    }
    keys
}

/// 1.2.840.113549.1.7.1, `data`: what a PKCS#12 file wraps.
const DATA: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
/// 1.2.840.113549.1.12.10.1, the bags of PKCS#12 (RFC 7292 section 4.2).
const BAG: [u8; 12] = [0x06, 0x0b, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01];
/// 1.2.840.113549.1.7.6, `encryptedData`.
const ENCRYPTED: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x06];

pub(super) fn is_pkcs12(bytes: &[u8]) -> bool {
    // PFX ::= SEQUENCE { version 3, authSafe … }
    let head = &bytes[..bytes.len().min(16)];
    head.windows(3).any(|w| w == [0x02, 0x01, 0x03]) && find(bytes, &DATA).is_some()
}

/// Whether a key bag can be seen without a password; `None` if everything is encrypted.
pub(super) fn pkcs12_has_key(bytes: &[u8]) -> Option<bool> {
    let mut at = 0;
    let mut bags = 0;
    while let Some(i) = find(&bytes[at..], &BAG) {
        let number = bytes.get(at + i + BAG.len());
        if matches!(number, Some(1 | 2)) {
            return Some(true);
        }
        bags += 1;
        at += i + BAG.len();
    }
    // Certificates are encrypted as a rule, keys stand in a safe of their own: only where nothing at all can
    // be seen a key may hide.
    let safes = bytes.windows(ENCRYPTED.len()).filter(|w| *w == ENCRYPTED).count();
    if bags == 0 && safes > 1 { None } else { Some(false) }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|w| w == part)
}

/// PKCS#8, PKCS#1 or SEC 1 by its first fields.
pub(super) fn is_der_key(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(12)];
    head.windows(4)
        .any(|w| w == [0x02, 0x01, 0x00, 0x30] || w[..3] == [0x02, 0x01, 0x00] && w[3] == 0x02)
        || head.windows(4).any(|w| w == [0x02, 0x01, 0x01, 0x04])
}

/// What is public of an unencrypted private key (PKCS#1, SEC 1 or PKCS#8): an RSA modulus, or a point of an elliptic
/// curve. A certificate of the same key holds these bytes.
pub(super) fn public_part(der: &[u8]) -> Option<Vec<u8>> {
    // RSAPrivateKey ::= SEQUENCE { version 0, modulus … }, perhaps within PKCS#8.
    const MODULUS: [u8; 5] = [0x02, 0x01, 0x00, 0x02, 0x82];
    if let Some(at) = find(der, &MODULUS) {
        let length = der.get(at + 5..at + 7)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let modulus = der.get(at + 7..at + 7 + length)?;
        return (length >= 64).then(|| modulus.strip_prefix(&[0]).unwrap_or(modulus).to_vec());
    }
    // ECPrivateKey's [1] BIT STRING, an uncompressed point: 256, 384 or 521 bits.
    for (head, length) in [
        (&[0x03, 0x42, 0x00, 0x04][..], 64),
        (&[0x03, 0x62, 0x00, 0x04], 96),
        (&[0x03, 0x81, 0x86, 0x00, 0x04], 132),
    ] {
        if let Some(at) = find(der, head) {
            let at = at + head.len();
            return der.get(at..at + length).map(<[u8]>::to_vec);
        }
    }
    None
}

/// The same of a certificate's SubjectPublicKeyInfo.
pub(super) fn public_of_certificate(spki: &[u8]) -> Option<Vec<u8>> {
    // BIT STRING of an uncompressed point at the end.
    for (head, length) in [
        (&[0x03, 0x42, 0x00, 0x04][..], 64),
        (&[0x03, 0x62, 0x00, 0x04], 96),
        (&[0x03, 0x81, 0x86, 0x00, 0x04], 132),
    ] {
        if let Some(point) = spki.len().checked_sub(length).map(|at| spki.split_at(at))
            && point.0.ends_with(head)
        {
            return Some(point.1.to_vec());
        }
    }
    // RSAPublicKey ::= SEQUENCE { modulus, … }, the only integer with a length of two bytes.
    let at = find(spki, &[0x02, 0x82])?;
    let length = spki.get(at + 2..at + 4)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let modulus = spki.get(at + 4..at + 4 + length)?;
    (length >= 64).then(|| modulus.strip_prefix(&[0]).unwrap_or(modulus).to_vec())
}
