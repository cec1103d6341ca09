//! Whether a process takes more and more memory: judged by the lowest use of each hour, because use goes up and down
//! within minutes, and only a leak raises what is left when it is quiet.

use std::collections::VecDeque;
use std::time::Duration;

/// The life of one low mark.
const SPAN: Duration = Duration::from_secs(3600);
/// Low marks that are kept: two days.
const MARKS: usize = 48;
/// Fewer prove nothing.
const LEAST_MARKS: usize = 6;
/// Growth that is worth a word: both at least this many bytes …
const LEAST_BYTES: u64 = 32 << 20;
/// … and at least a tenth of what it was.
const LEAST_PART: u64 = 10;

/// The low marks of one process.
#[derive(Clone, Debug, Default)]
pub struct MemoryTrend {
    /// Of whole spans, oldest first; the first span of a process is not among them, as caches fill in it.
    marks: VecDeque<u64>,
    /// The span under way, and its lowest use so far.
    current: Option<(u64, u64)>,
    warm: bool,
    last: u64,
}

/// Memory that only ever grew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Bytes in the first span of the growth.
    pub from: u64,
    /// Bytes in the last.
    pub to: u64,
    /// How long it took.
    pub over: Duration,
}

impl MemoryTrend {
    /// Takes in a measurement: `bytes` in use, `at` after any fixed moment.
    pub fn record(&mut self, at: Duration, bytes: u64) {
        self.last = bytes;
        let span = at.as_secs() / SPAN.as_secs();
        match &mut self.current {
            Some((now, lowest)) if *now == span => *lowest = bytes.min(*lowest),
            current => {
                if let Some((_, lowest)) = current.replace((span, bytes)) {
                    if self.warm {
                        self.marks.push_back(lowest);
                    }
                    self.warm = true;
                }
                while self.marks.len() > MARKS {
                    self.marks.pop_front();
                }
            }
        }
    }

    /// The latest measurement, bytes; 0 before the first.
    pub fn latest(&self) -> u64 {
        self.last
    }

    /// The longest growth up to now, if there is one: no mark below the one before, and it has not stopped.
    pub fn growth(&self) -> Option<Growth> {
        let marks: Vec<u64> = self.marks.iter().copied().collect();
        // A hundredth is noise of the allocator.
        let falls = marks.windows(2).rposition(|w| w[1] < w[0] - w[0] / 100);
        let grown = &marks[falls.map_or(0, |i| i + 1)..];
        let (&from, &to) = (grown.first()?, grown.last()?);
        let by = to.saturating_sub(from);
        if grown.len() < LEAST_MARKS || by < LEAST_BYTES || by < from / LEAST_PART {
            return None;
        }
        // What was filled once and is full now is no leak: the last third has its share.
        let late = to.saturating_sub(grown[grown.len() - grown.len() / 3 - 1]);
        let spans = u32::try_from(grown.len() - 1).unwrap_or(u32::MAX);
        (late >= by / 8).then_some(Growth { from, to, over: SPAN * spans })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Minutes of use as `f` says, by the hour it is then.
    fn trend(hours: u64, f: impl Fn(u64, u64) -> u64) -> MemoryTrend {
        let mut trend = MemoryTrend::default();
        for minute in 0..hours * 60 {
            trend.record(Duration::from_secs(minute * 60), f(minute / 60, minute % 60) * MIB);
        }
        trend
    }

    #[test]
    fn a_leak_is_told_from_use_that_goes_up_and_down() {
        // 10 MiB an hour, below peaks of twice the use.
        let leak = trend(24, |hour, minute| (100 + hour * 10) * if minute == 0 { 1 } else { 2 });
        let growth = leak.growth().unwrap();
        assert_eq!((growth.from, growth.to), (110 * MIB, 320 * MIB));
        assert_eq!(growth.over, Duration::from_secs(21 * 3600));
        // Load that grows and leaves nothing behind.
        let load = |hour: u64, minute: u64| if minute == 30 { 100 } else { 100 + hour * 50 };
        assert_eq!(trend(24, load).growth(), None);
        // Day and night.
        let day = |hour: u64, _: u64| if (hour / 6).is_multiple_of(2) { 400 } else { 100 };
        assert_eq!(trend(48, day).growth(), None);
    }

    #[test]
    fn what_fills_up_and_stays_is_no_leak() {
        assert_eq!(trend(24, |hour, _| 100 + hour.min(8) * 20).growth(), None);
        assert_eq!(trend(24, |hour, _| if hour == 0 { 20 } else { 300 }).growth(), None);
        // Little growth, and growth of something large by a little.
        assert_eq!(trend(24, |hour, _| 100 + hour).growth(), None);
        assert_eq!(trend(24, |hour, _| 4000 + hour * 4).growth(), None);
        assert_eq!(trend(3, |hour, _| 100 + hour * 100).growth(), None, "too short to say");
    }

    #[test]
    fn marks_are_bounded_and_gaps_do_no_harm() {
        let long = trend(500, |hour, _| 100 + hour * 10);
        assert_eq!(long.marks.len(), MARKS);
        assert_eq!(long.latest(), (100 + 4990) * MIB);
        assert!(long.growth().is_some());
        let mut suspended = trend(10, |_, _| 100);
        suspended.record(Duration::from_secs(1_000_000), 50 * MIB);
        assert_eq!(suspended.growth(), None);
    }
}
