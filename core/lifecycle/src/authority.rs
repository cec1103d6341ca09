//! Rollover of an authority: the next one is prepared and published well before it is used, and the old
//! one is forgotten only when nothing it signed can still be valid.

use std::time::Duration;

use countersign_identity::UnixTime;

/// When the steps happen, as parts of the active authority's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Prepare the next when this much life is left at most…
    pub prepare_before: Duration,
    /// …and activate it when this much is left at most.
    pub activate_before: Duration,
    /// A prepared authority is not activated earlier than this after it was published.
    pub publish_for: Duration,
}

impl Policy {
    /// SPIRE's proportions for an authority of life `ttl`: prepare at half, activate at a sixth.
    pub fn for_ttl(ttl: Duration) -> Self {
        Self {
            prepare_before: (ttl / 2).min(Duration::from_secs(30 * 86_400)),
            activate_before: (ttl / 6).min(Duration::from_secs(7 * 86_400)),
            publish_for: (ttl / 24).min(Duration::from_secs(600)),
        }
    }
}

/// One authority as the timeline sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthorityState {
    /// When it was made known.
    pub published_at: UnixTime,
    /// When it ends.
    pub not_after: UnixTime,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make and publish the next authority.
    Prepare,
    /// Sign with the prepared one from now on.
    Activate,
    /// Forget authorities that ended.
    PruneEnded,
}

/// The machine: holds what exists, answers what is due.
#[derive(Clone, Debug)]
pub struct AuthorityTimeline {
    policy: Policy,
    active: Option<AuthorityState>,
    prepared: Option<AuthorityState>,
    old: Vec<AuthorityState>,
}

impl AuthorityTimeline {
    /// A timeline over what exists.
    pub fn new(
        policy: Policy,
        active: Option<AuthorityState>,
        prepared: Option<AuthorityState>,
        old: Vec<AuthorityState>,
    ) -> Self {
        Self { policy, active, prepared, old }
    }

    /// The next thing that is due at `now`, if any. Call again after doing it.
    pub fn poll(&self, now: UnixTime) -> Option<Action> {
        let left = |a: &AuthorityState| a.not_after.since(now);
        match (&self.active, &self.prepared) {
            (None, None) => return Some(Action::Prepare),
            // Nothing signs: a prepared one is better than none, however young.
            (None, Some(_)) => return Some(Action::Activate),
            (Some(active), Some(next)) => {
                let urgent = active.not_after <= now;
                let published = now.since(next.published_at) >= self.policy.publish_for;
                if urgent || (left(active) <= self.policy.activate_before && published) {
                    return Some(Action::Activate);
                }
            }
            (Some(active), None) => {
                if left(active) <= self.policy.prepare_before {
                    return Some(Action::Prepare);
                }
            }
        }
        self.old.iter().any(|a| a.not_after <= now).then_some(Action::PruneEnded)
    }

    /// Records that a new authority was made and published.
    pub fn prepared(&mut self, state: AuthorityState) {
        self.prepared = Some(state);
    }

    /// Records that the prepared authority signs now.
    pub fn activated(&mut self) {
        if let Some(next) = self.prepared.take() {
            self.old.extend(self.active.replace(next));
        }
    }

    /// Records that ended authorities were forgotten.
    pub fn pruned(&mut self, now: UnixTime) {
        self.old.retain(|a| a.not_after > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Weeks of rotation in a loop: at every step something valid signs, and it was published before.
    fn simulate(ttl: u64, step: u64, steps: u64) {
        let ttl = Duration::from_secs(ttl);
        let policy = Policy::for_ttl(ttl);
        let mut now = UnixTime::from_secs(1_000_000);
        let mut t = AuthorityTimeline::new(policy, None, None, Vec::new());
        let mut first = true;
        for _ in 0..steps {
            while let Some(action) = t.poll(now) {
                match action {
                    Action::Prepare => {
                        t.prepared(AuthorityState { published_at: now, not_after: now + ttl });
                    }
                    Action::Activate => {
                        if !first {
                            let next = t.prepared.expect("prepared");
                            assert!(now.since(next.published_at) >= policy.publish_for);
                        }
                        first = false;
                        t.activated();
                    }
                    Action::PruneEnded => t.pruned(now),
                }
            }
            let active = t.active.expect("something signs");
            assert!(active.not_after > now, "and is valid");
            assert!(t.old.len() < 3, "old ones are forgotten");
            now = now + Duration::from_secs(step);
        }
    }

    proptest! {
        #[test]
        fn something_valid_always_signs(ttl in 600u64..10_000_000, steps_per_ttl in 60u64..400) {
            simulate(ttl, (ttl / steps_per_ttl).max(1), steps_per_ttl * 8);
        }
    }

    #[test]
    fn after_a_long_sleep_it_recovers_at_once() {
        let ttl = Duration::from_secs(86_400);
        let t0 = UnixTime::from_secs(0);
        let state = AuthorityState { published_at: t0, not_after: t0 + ttl };
        let later = t0 + ttl * 30;
        let mut t = AuthorityTimeline::new(Policy::for_ttl(ttl), Some(state), None, vec![]);
        assert_eq!(t.poll(later), Some(Action::Prepare));
        t.prepared(AuthorityState { published_at: later, not_after: later + ttl });
        assert_eq!(t.poll(later), Some(Action::Activate), "no waiting when nothing valid signs");
    }
}
