//! Address blocks.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address block: `10.0.0.0/8`, `fd00::/8`, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: IpAddr,
    bits: u8,
}

impl FromStr for Cidr {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (address, bits) = match s.split_once('/') {
            Some((a, b)) => (a, Some(b)),
            None => (s, None),
        };
        let base: IpAddr = address
            .parse()
            .map_err(|_| format!("`{}` is not an IP address", s.escape_default()))?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(b) => b
                .parse::<u8>()
                .ok()
                .filter(|b| *b <= most)
                .ok_or_else(|| format!("prefix length must be 0 to {most}"))?,
        };
        // An IPv4-mapped block is the IPv4 block it maps.
        match (base, base.to_canonical()) {
            (IpAddr::V6(_), v4 @ IpAddr::V4(_)) => match bits.checked_sub(96) {
                Some(bits) => Ok(Self { base: v4, bits }),
                None => Err("covers more than the IPv4-mapped addresses that it names".into()),
            },
            _ => Ok(Self { base, bits }),
        }
    }
}

impl Cidr {
    /// Whether `ip` is in the block.
    pub fn contains(self, ip: IpAddr) -> bool {
        // An IPv4-mapped address is the IPv4 address it maps.
        let number = |ip: IpAddr| match ip.to_canonical() {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, true),
            IpAddr::V6(v6) => (u128::from(v6), false),
        };
        let ((base, base4), (ip, ip4)) = (number(self.base), number(ip));
        base4 == ip4 && (self.bits == 0 || (base ^ ip) >> (128 - u32::from(self.bits)) == 0)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs() {
        let c = |s: &str| s.parse::<Cidr>().unwrap();
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert!(c("10.0.0.0/8").contains(ip("10.9.9.9")));
        assert!(!c("10.0.0.0/8").contains(ip("11.0.0.0")));
        assert!(c("10.0.0.1").contains(ip("::ffff:10.0.0.1")), "mapped");
        assert!(c("0.0.0.0/0").contains(ip("1.2.3.4")) && !c("0.0.0.0/0").contains(ip("::1")));
        assert!(c("2001:db8::/32").contains(ip("2001:db8::1")));
        for bad in ["10.0.0.0/33", "10.0.0", "x", "10.0.0.0/-1", "10.0.0.0/"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
