//! Seconds since the Unix epoch, as the core sees time: always passed in, never read.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time in whole seconds since 1970-01-01T00:00:00Z; may lie before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixTime(i64);

impl UnixTime {
    /// The time `secs` seconds after (or, negative, before) the epoch.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs)
    }

    /// Seconds since the epoch.
    pub const fn secs(self) -> i64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: UnixTime) -> Duration {
        Duration::from_secs(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Parses RFC 3339 (`2026-11-22T05:00:00Z`) or whole seconds since the epoch.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(secs) = text.parse::<i64>() {
            return Some(Self(secs));
        }
        text.parse::<jiff::Timestamp>().ok().map(|t| Self(t.as_second()))
    }
}

impl Add<Duration> for UnixTime {
    type Output = UnixTime;
    fn add(self, d: Duration) -> UnixTime {
        Self(self.0.saturating_add(i64::try_from(d.as_secs()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for UnixTime {
    type Output = UnixTime;
    fn sub(self, d: Duration) -> UnixTime {
        Self(self.0.saturating_sub(i64::try_from(d.as_secs()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.0) {
            Ok(t) => write!(f, "{t}"),
            Err(_) => write!(f, "@{}", self.0),
        }
    }
}

impl fmt::Debug for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_rfc3339() {
        let t = UnixTime::from_secs(1_767_225_600);
        assert_eq!(t.to_string(), "2026-01-01T00:00:00Z");
        assert_eq!(UnixTime::parse("2026-01-01T00:00:00Z"), Some(t));
        assert_eq!(UnixTime::parse("1767225600"), Some(t));
        assert_eq!(UnixTime::parse("yesterday"), None);
    }

    #[test]
    fn arithmetic_saturates() {
        let end = UnixTime::from_secs(i64::MAX);
        assert_eq!(end + Duration::from_secs(1), end);
        assert_eq!(UnixTime::from_secs(5).since(end), Duration::ZERO);
    }
}
