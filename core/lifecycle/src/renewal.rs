//! Renewal of leaves: at half-life with jitter, and back-off when that fails.

use std::time::Duration;

use countersign_identity::UnixTime;

/// Issuers date certificates back by this much; it is not part of the life that renewal divides.
const BACKDATE: Duration = Duration::from_secs(10);

/// When to renew something valid from `not_before` (dated back by 10 s) to `not_after`: at half of its
/// life, moved by up to ±10 % of that half by `jitter` (0..=u32::MAX maps to −10 %…+10 %), so that a
/// fleet started together does not renew together.
pub fn renewal_time(not_before: UnixTime, not_after: UnixTime, jitter: u32) -> UnixTime {
    let begin = (not_before + BACKDATE).min(not_after);
    let half = not_after.since(begin) / 2;
    let spread = half / 10;
    let shift = spread.mul_f64(2.0 * f64::from(jitter) / f64::from(u32::MAX));
    (begin + half - spread + shift).min(not_after)
}

/// Exponential back-off with a cap: 0.5 s, 1 s, 2 s, … `max`.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    /// First pause in milliseconds.
    pub const FIRST: Duration = Duration::from_millis(500);

    /// Starts over at [`Backoff::FIRST`]; never pauses longer than `max`.
    pub fn new(max: Duration) -> Self {
        Self { next: Self::FIRST.min(max), max }
    }

    /// The pause before the next try, spread by `jitter` over 75 %…125 %.
    pub fn pause(&mut self, jitter: u32) -> Duration {
        let now = self.next;
        self.next = (self.next * 2).min(self.max);
        now.mul_f64(0.75 + 0.5 * f64::from(jitter) / f64::from(u32::MAX))
    }

    /// Forgets earlier failures.
    pub fn reset(&mut self) {
        self.next = Self::FIRST.min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn renewal_is_near_half_life(start in 0i64..4_000_000_000, life in 10u64..400_000_000, jitter: u32) {
            let from = UnixTime::from_secs(start);
            let to = from + Duration::from_secs(life);
            let backdated = from - BACKDATE;
            let at = renewal_time(backdated, to, jitter).since(from).as_secs_f64() / life as f64;
            prop_assert!((0.35..=0.56).contains(&at) || life < 100, "{at}");
            prop_assert!(renewal_time(backdated, to, jitter) < to);
        }
    }

    #[test]
    fn backoff_grows_to_its_cap_and_starts_over() {
        let mut b = Backoff::new(Duration::from_secs(2));
        let mid = u32::MAX / 2;
        let pauses: Vec<u128> = (0..4).map(|_| b.pause(mid).as_millis()).collect();
        assert!(pauses[0] < 501 && pauses[1] < 1001 && pauses[3] < 2001, "{pauses:?}");
        assert_eq!(pauses[2], pauses[3]);
        b.reset();
        assert!(b.pause(mid).as_millis() < 501);
    }
}
