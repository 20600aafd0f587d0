//! Finds an engine that is dead or stuck. Nothing can be served then: only a new process can.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// Between two looks, at most.
const PERIOD_MAX: Duration = Duration::from_secs(1);
/// Looks in the time that a step may take, at least.
const LOOKS: u32 = 16;

/// Why the server can serve no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineFault {
    #[error("the engine has stopped after a fault; the lines above have the cause")]
    Dead,
    #[error("the engine is stuck: there is work, and no step has begun for {} s (--step-timeout)", .0.as_secs_f32())]
    Stuck(Duration),
}

/// What is seen of the engine in one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulse {
    /// There is nothing to do, or no engine yet.
    Rests,
    /// There is work; so many steps were begun.
    Works {
        steps: u64,
    },
    Dead,
}

/// Returns when the engine is dead, or has had work and begun no step for as long as `limit`.
pub(crate) async fn watch(limit: Duration, pulse: impl Fn() -> Pulse) -> EngineFault {
    let period = (limit / LOOKS).clamp(Duration::from_millis(1), PERIOD_MAX);
    let mut looks = interval(period);
    // Looks are counted, not time: if the whole process was paused, no time has passed.
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut still) = (Pulse::Rests, Duration::ZERO);
    loop {
        looks.tick().await;
        let now = pulse();
        still = if now == last && now != Pulse::Rests { still + period } else { Duration::ZERO };
        if now == Pulse::Dead {
            return EngineFault::Dead;
        }
        if still >= limit {
            return EngineFault::Stuck(limit);
        }
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// What is found, and after how many seconds, if this is seen in each second.
    async fn check(seen: impl Fn(u64) -> Pulse, expected: EngineFault, after_s: u64) {
        let start = Instant::now();
        let found = watch(Duration::from_secs(300), || seen(start.elapsed().as_secs())).await;
        assert_eq!((found, start.elapsed().as_secs()), (expected, after_s));
    }

    #[tokio::test(start_paused = true)]
    async fn only_work_without_steps_is_a_fault() {
        let stuck = EngineFault::Stuck(Duration::from_secs(300));
        check(|_| Pulse::Works { steps: 0 }, stuck.clone(), 300).await;
        let steps_are_slow = |s: u64| Pulse::Works { steps: s.min(2000) / 290 };
        check(steps_are_slow, stuck.clone(), 1740 + 300).await;
        let rests = |s: u64| if s < 5000 { Pulse::Rests } else { Pulse::Works { steps: 7 } };
        check(rests, stuck.clone(), 5300).await;
        let pauses =
            |s: u64| if s.is_multiple_of(200) && s < 1000 { Pulse::Rests } else { Pulse::Works { steps: 7 } };
        check(pauses, stuck, 801 + 300).await;
        check(|s| if s < 40 { Pulse::Works { steps: s } } else { Pulse::Dead }, EngineFault::Dead, 40).await;
    }
}
