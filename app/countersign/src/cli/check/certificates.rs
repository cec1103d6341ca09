//! How much life is left, and what that means.

use countersign_findings::{Code, Finding};
use countersign_identity::UnixTime;

use super::report::{Category, Verdict};

const DAY: u64 = 86_400;

/// What a rest of life means: days for what lives long and is renewed by people, a part of the whole for what a
/// machine renews at half of it.
pub(in crate::cli) fn verdict(not_before: UnixTime, not_after: UnixTime, now: UnixTime) -> Verdict {
    let life = not_after.since(not_before).as_secs();
    let left = not_after.since(now).as_secs();
    if now > not_after {
        return Verdict::Error;
    }
    if life > 30 * DAY {
        return match left {
            0..=DAY => Verdict::Error,
            // Three days still leave a working day after a weekend.
            _ if left <= 7 * DAY => Verdict::Warning,
            _ => Verdict::Success,
        };
    }
    // Half is the usual time of renewal; a third left means that one was missed.
    match left.saturating_mul(100) / life.max(1) {
        0..5 => Verdict::Error,
        5..30 => Verdict::Warning,
        _ => Verdict::Success,
    }
}

/// `3 d`, `5 h`, `12 min`, `40 s`.
pub(in crate::cli) fn span(secs: u64) -> String {
    match secs {
        DAY.. => format!("{} d", secs / DAY),
        3600.. => format!("{} h", secs / 3600),
        120.. => format!("{} min", secs / 60),
        _ => format!("{secs} s"),
    }
}

/// Judges one certificate or authority by its time.
pub(in crate::cli) fn check(
    category: &mut Category,
    what: &str,
    (not_before, not_after): (UnixTime, UnixTime),
    now: UnixTime,
    code: Code,
) {
    if now < not_before {
        let ahead = span(not_before.since(now).as_secs());
        let text = format!(
            "it begins at {not_before}: this clock is {ahead} behind, or its issuer's ahead"
        );
        let finding = Finding::new(Code::CertificateNotYetValid, text);
        return category.fail(format!("{what} is in its time"), &finding);
    }
    let left = span(not_after.since(now).as_secs());
    let description = format!("{what} is in its time");
    match verdict(not_before, not_after, now) {
        Verdict::Success => category.ok(format!("{description}: {left} left, until {not_after}")),
        _ if now > not_after => {
            let ago = span(now.since(not_after).as_secs());
            let text = format!("it ended {ago} ago, at {not_after}");
            category.fail(description, &Finding::new(Code::CertificateExpired, text));
        }
        bad => {
            let text = format!("{left} left of {}", span(not_after.since(not_before).as_secs()));
            category.with(description, bad, &Finding::new(code, text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lives_by_days_and_short_ones_by_their_part() {
        let at = UnixTime::from_secs;
        let day = i64::try_from(DAY).unwrap();
        let year = 365 * day;
        for (left, expected) in [
            (30 * day, Verdict::Success),
            (7 * day + 1, Verdict::Success),
            (7 * day, Verdict::Warning),
            (3 * day, Verdict::Warning),
            (day, Verdict::Error),
            (-1, Verdict::Error),
        ] {
            assert_eq!(verdict(at(0), at(year), at(year - left)), expected, "{left}");
        }
        for (left, expected) in [
            (1800, Verdict::Success),
            (1081, Verdict::Success),
            (1000, Verdict::Warning),
            (179, Verdict::Error),
            (-1, Verdict::Error),
        ] {
            assert_eq!(verdict(at(0), at(3600), at(3600 - left)), expected, "{left}");
        }
    }

    #[test]
    fn spans_are_short() {
        for (secs, expected) in
            [(5, "5 s"), (119, "119 s"), (600, "10 min"), (7200, "2 h"), (DAY, "1 d")]
        {
            assert_eq!(span(secs), expected);
        }
    }
}
