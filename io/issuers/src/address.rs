//! Where an issuer may live. A document names the URL, and its author need not be who runs the proxy: it must
//! not make the proxy talk to what only this host reaches.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use countersign_policy::Cidr;

/// Why `ip` may not be asked, if so.
pub(crate) fn refused(ip: IpAddr, allowed: &[Cidr]) -> Option<&'static str> {
    let ip = embedded(ip.to_canonical());
    if allowed.iter().any(|block| block.contains(ip)) {
        return None;
    }
    /// Metadata services of clouds outside of the link-local blocks.
    const METADATA: [IpAddr; 5] = [
        IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
        IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
        IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
        IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    ];
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_loopback() {
        Some("a loopback address")
    } else if link_local {
        Some("a link-local address")
    } else if ip.is_unspecified() || ip.is_multicast() || broadcast {
        Some("no address of one host")
    } else if METADATA.contains(&ip) {
        Some("a cloud's metadata service")
    } else {
        None
    }
}

/// The IPv4 address that NAT64 (RFC 6052) makes of some IPv6 ones.
fn embedded(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) if v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            let [.., a, b, c, d] = v6.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ra_6_addresses_that_only_this_host_reaches() {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        for bad in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "100.100.100.200",
            "fd00:ec2::254",
            "fd20:ce::254",
            "168.63.129.16",
            "64:ff9b::169.254.169.254",
            "64:ff9b::7f00:1",
        ] {
            assert!(refused(ip(bad), &[]).is_some(), "{bad}");
        }
        for good in [
            "10.0.0.1",
            "192.168.1.1",
            "93.184.216.34",
            "2001:db8::1",
            "fd00::1",
            "64:ff9b::5db8:d822",
        ] {
            assert_eq!(refused(ip(good), &[]), None, "{good}");
        }
        let loopback = ["127.0.0.0/8".parse().unwrap()];
        assert_eq!(refused(ip("127.0.0.1"), &loopback), None);
        assert!(refused(ip("169.254.169.254"), &loopback).is_some());
    }
}
