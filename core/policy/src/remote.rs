//! Where a request came from originally, as far as that can be believed (AP-18).

use std::net::IpAddr;

/// The address that the outermost of `hops` trusted proxies saw: so many entries from the right of
/// X-Forwarded-For, to which each proxy appends whom it was called by. The TCP peer's where none is trusted, where
/// fewer entries came than there are proxies, or where what came is no address.
pub fn remote_ip(peer: IpAddr, headers: &[(&str, &str)], hops: u8) -> IpAddr {
    if hops == 0 {
        return peer;
    }
    let fields = headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("x-forwarded-for"));
    let entries = fields.flat_map(|(_, v)| v.split(','));
    let entries: Vec<&str> = entries.map(str::trim).filter(|e| !e.is_empty()).collect();
    let wanted = entries.len().checked_sub(usize::from(hops)).map(|i| entries[i]);
    wanted.and_then(|e| e.parse().ok()).unwrap_or(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ap_18_only_trusted_proxies_are_believed() {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        let peer = ip("10.0.0.9");
        let one = [("x-forwarded-for", "203.0.113.7, 198.51.100.1")];
        let two = [("X-Forwarded-For", "203.0.113.7"), ("x-forwarded-for", "198.51.100.1")];
        for headers in [&one[..], &two] {
            assert_eq!(remote_ip(peer, headers, 0), peer, "nobody is trusted");
            assert_eq!(remote_ip(peer, headers, 1), ip("198.51.100.1"));
            assert_eq!(remote_ip(peer, headers, 2), ip("203.0.113.7"));
            assert_eq!(remote_ip(peer, headers, 3), peer, "somebody came round the proxies");
        }
        for bad in ["unknown", "10.0.0.1:80", ""] {
            assert_eq!(remote_ip(peer, &[("x-forwarded-for", bad)], 1), peer, "{bad}");
        }
        assert_eq!(remote_ip(peer, &[("x-forwarded-for", "2001:db8::1")], 1), ip("2001:db8::1"));
        assert_eq!(remote_ip(peer, &[], 1), peer);
    }
}
