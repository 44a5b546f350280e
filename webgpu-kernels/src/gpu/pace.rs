//! [`Pace`]: how fast the device works, measured, so that no submission takes long: drivers take a device that is busy for
//! a second or two for one that hangs, and reset it.

use web_time::{Duration, Instant};

/// What a submission should take.
const WANTED: Duration = Duration::from_millis(100);
/// What is assumed of a device that nothing was measured on: a slow one.
const UNKNOWN: f64 = 2e10;
/// Less work than this says more of the trip than of the pace.
const LEAST_WORK: u64 = 100_000_000;

/// How fast the device works.
pub(crate) struct Pace {
    /// Multiplications and additions per second.
    per_second: f64,
    is_measured: bool,
    /// What the caller wants at most at a time.
    limit: Option<u64>,
    /// When the device was last known to have nothing to do, and what it was given since.
    since: Option<(Instant, u64)>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { per_second: UNKNOWN, is_measured: false, limit: None, since: None }
    }
}

impl Pace {
    /// Multiplications and additions that a submission may have.
    pub fn work_at_once(&self) -> u64 {
        self.limit.unwrap_or((self.per_second * WANTED.as_secs_f64()) as u64)
    }

    pub fn limit(&mut self, limit: Option<u64>) {
        self.limit = limit;
    }

    /// Work was handed to the device.
    pub fn submitted(&mut self, work: u64, now: Instant) {
        self.since.get_or_insert((now, 0)).1 += work;
    }

    /// All of it is done.
    pub fn finished(&mut self, now: Instant) {
        let Some((since, work)) = self.since.take() else { return };
        let seconds = (now - since).as_secs_f64();
        if work < LEAST_WORK || seconds <= 0.0 {
            return;
        }
        let measured = work as f64 / seconds;
        // A slower pace is believed at once, a faster one by and by.
        let is_slower = measured < self.per_second;
        self.per_second = if !self.is_measured || is_slower { measured } else { (self.per_second + measured) / 2.0 };
        self.is_measured = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submissions_are_as_large_as_a_tenth_of_a_second() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pace = Pace::default();
        let close = |pace: &Pace, expected: f64| {
            let found = pace.work_at_once() as f64;
            assert!((found / expected - 1.0).abs() < 1e-6, "{found}, expected {expected}");
        };
        close(&pace, 2e9);
        // Two submissions, 400 ms together.
        pace.submitted(3_000_000_000, at(0));
        pace.submitted(1_000_000_000, at(50));
        pace.finished(at(400));
        close(&pace, 1e9);
        // Faster: half the way. Time between is not counted.
        pace.submitted(3_000_000_000, at(9000));
        pace.finished(at(9100));
        close(&pace, 2e9);
        // Slower: at once.
        pace.submitted(1_000_000_000, at(10_000));
        pace.finished(at(12_000));
        close(&pace, 5e7);
        // Too little to say anything.
        pace.submitted(1000, at(20_000));
        pace.finished(at(30_000));
        close(&pace, 5e7);
        pace.limit(Some(7));
        assert_eq!(pace.work_at_once(), 7);
    }
}
