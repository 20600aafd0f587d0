//! How long things took, and what of it is told.

use std::time::Duration;

use serde::Serialize;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    Milliseconds,
    Microseconds,
}

/// Durations of one kind.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

/// Half were no longer than `p50`, 99 of 100 no longer than `p99`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub p50: f64,
    pub p99: f64,
}

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// `None`: nothing was measured.
    pub(crate) fn spread(mut self, unit: Unit) -> Option<Spread> {
        self.0.sort_unstable();
        let at = |percent| Some(rounded(*percentile(&self.0, percent)?, unit));
        Some(Spread { p50: at(50)?, p99: at(99)? })
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        Self(times.into_iter().collect())
    }
}

/// The nearest rank: the least value that `percent` of all do not exceed.
fn percentile<T>(sorted: &[T], percent: usize) -> Option<&T> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?)
}

/// To a nanosecond of microseconds, a microsecond of milliseconds.
fn rounded(time: Duration, unit: Unit) -> f64 {
    let per_second = match unit {
        Unit::Milliseconds => 1e3,
        Unit::Microseconds => 1e6,
    };
    (time.as_secs_f64() * per_second * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(millis: &[u64], expected: Option<(f64, f64)>) {
        let times: Times = millis.iter().map(|&ms| Duration::from_millis(ms)).collect();
        let spread = times.spread(Unit::Milliseconds);
        assert_eq!(spread.map(|spread| (spread.p50, spread.p99)), expected, "{millis:?}");
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        check(&[], None);
        check(&[7], Some((7.0, 7.0)));
        check(&[2, 1], Some((1.0, 2.0)));
        check(&[3, 1, 2], Some((2.0, 3.0)));
        let hundred: Vec<u64> = (1..=100).rev().collect();
        check(&hundred, Some((50.0, 99.0)));
        let many: Vec<u64> = (1..=1000).collect();
        check(&many, Some((500.0, 990.0)));
    }

    #[test]
    fn units() {
        for (unit, expected) in [(Unit::Milliseconds, 1.235), (Unit::Microseconds, 1234.567)] {
            assert_eq!(rounded(Duration::from_nanos(1_234_567), unit), expected);
        }
    }
}
