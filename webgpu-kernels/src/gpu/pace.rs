//! [`Pace`]: the device's speed. The measured speed bounds submissions: a driver resets a device that one submission keeps busy for a
//! second or two. An assumed speed, by the device's class, bounds the parts of a text.
//!
//! The measured speed depends on the load of the machine. So it only decides where commands are cut into submissions and dispatches, never
//! how many rows a part has or which kernel computes a row. The same text gives the same bits on a busy device.

use web_time::{Duration, Instant};

use super::adapter::DeviceType;

/// Target time of a submission.
const WANTED: Duration = Duration::from_millis(100);
/// Operations per second before the first measurement: those of a slow device.
const UNKNOWN: f64 = 2e10;
/// With less work than this, latency dominates the measured time.
const LEAST_WORK: u64 = 100_000_000;

/// Assumed multiplications and additions per second of a class of devices, to divide texts.
fn assumed(device_type: DeviceType) -> f64 {
    match device_type {
        DeviceType::Discrete => 1e13,
        DeviceType::Integrated => 1e12,
        // Browsers do not tell the class.
        DeviceType::Virtual | DeviceType::Other => 2e11,
        DeviceType::Cpu => UNKNOWN,
    }
}

/// The device's speed.
pub(crate) struct Pace {
    /// Multiplications and additions per second, measured.
    per_second: f64,
    is_measured: bool,
    /// Multiplications and additions of a part of a text.
    part: u64,
    /// The caller's bound of both.
    limit: Option<u64>,
    /// The time of the first submission since the device was last idle, and the work since then.
    since: Option<(Instant, u64)>,
}

impl Pace {
    pub fn new(device_type: DeviceType) -> Pace {
        let part = (assumed(device_type) * WANTED.as_secs_f64()) as u64;
        Pace { per_second: UNKNOWN, is_measured: false, part, limit: None, since: None }
    }

    /// Most multiplications and additions of a submission.
    pub fn work_at_once(&self) -> u64 {
        self.limit.unwrap_or((self.per_second * WANTED.as_secs_f64()) as u64)
    }

    /// Most multiplications and additions of an operation over a part of a text. It does not depend on measurements.
    pub fn work_of_part(&self) -> u64 {
        self.limit.unwrap_or(self.part)
    }

    pub fn limit(&mut self, limit: Option<u64>) {
        self.limit = limit;
    }

    /// Adds a measurement.
    pub fn measured(&mut self, work: u64, time: Duration) {
        let seconds = time.as_secs_f64();
        if work < LEAST_WORK || seconds <= 0.0 {
            return;
        }
        let measured = work as f64 / seconds;
        // Adopt a slower pace at once, a faster one gradually.
        let is_slower = measured < self.per_second;
        self.per_second = if !self.is_measured || is_slower { measured } else { (self.per_second + measured) / 2.0 };
        self.is_measured = true;
    }

    /// Notes a submission.
    pub fn submitted(&mut self, work: u64, now: Instant) {
        self.since.get_or_insert((now, 0)).1 += work;
    }

    /// Notes that the device has finished all submissions.
    pub fn finished(&mut self, now: Instant) {
        if let Some((since, work)) = self.since.take() {
            self.measured(work, now - since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submissions_have_work_for_a_tenth_of_a_second() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pace = Pace::new(DeviceType::Discrete);
        let close = |pace: &Pace, expected: f64| {
            let found = pace.work_at_once() as f64;
            assert!((found / expected - 1.0).abs() < 1e-6, "{found}, expected {expected}");
        };
        close(&pace, 2e9);
        // Two submissions take 400 ms together.
        pace.submitted(3_000_000_000, at(0));
        pace.submitted(1_000_000_000, at(50));
        pace.finished(at(400));
        close(&pace, 1e9);
        // Faster: the mean. Idle time does not count.
        pace.submitted(3_000_000_000, at(9000));
        pace.finished(at(9100));
        close(&pace, 2e9);
        // Slower: at once.
        pace.submitted(1_000_000_000, at(10_000));
        pace.finished(at(12_000));
        close(&pace, 5e7);
        // Too little work for a measurement.
        pace.submitted(1000, at(20_000));
        pace.finished(at(30_000));
        close(&pace, 5e7);
        // Measurements do not change the parts of a text.
        assert_eq!(pace.work_of_part(), 1_000_000_000_000);
        pace.limit(Some(7));
        assert_eq!((pace.work_at_once(), pace.work_of_part()), (7, 7));
    }
}
