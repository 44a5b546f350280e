//! Formats the results as tables and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::{
    check::{Entry, Report},
    cost::{Forecast, GAP},
    devices::{DEVICES, Speed},
};

/// The label of every prediction.
const LABEL: &str = "PREDICTED by a cost model from the compiler's output; nothing was run on such a device";

impl Entry {
    fn label(&self) -> String {
        format!("{} {}", self.kernel, self.variant)
    }
}

impl Report {
    /// True if the device's own driver compiled the variants, so that the register counts are the device's.
    fn is_of_own_compiler(&self) -> bool {
        DEVICES.iter().any(|device| device.name == self.name && device.caps.is_none())
    }

    /// Variants with spilled registers or scratch memory.
    pub fn spills(&self) -> impl Iterator<Item = String> {
        let spills = |entry: &&Entry| entry.compiled.as_ref().is_some_and(|of| of.spills() > 0.0 || of.scratch() > 0.0);
        self.variants.iter().filter(spills).map(|entry| {
            let of = entry.compiled.as_ref().expect("the filter keeps compiled variants");
            format!("{}: spills {} registers, {} bytes of scratch", entry.label(), of.spills(), of.scratch())
        })
    }

    /// All failures, each with its device.
    pub fn failures(&self) -> Vec<String> {
        let refused = self.variants.iter().filter_map(|entry| {
            let reason = entry.refused.as_ref()?;
            Some(format!("{}: rejected: {reason}", entry.label()))
        });
        let spills = self.spills().filter(|_| self.is_of_own_compiler());
        let all = refused.chain(spills).chain(self.faults.iter().cloned());
        all.map(|fault| format!("{}: {fault}", self.name)).collect()
    }

    fn speed(&self) -> Option<Speed> {
        DEVICES.iter().find(|device| device.name == self.name)?.speed
    }

    /// The report as readable text. `all` adds a line per variant.
    pub fn table(&self, all: bool) -> String {
        let mut text = format!("\n== {}: {}\n", self.name, self.about);
        let refused = self.variants.iter().filter(|entry| entry.refused.is_some()).count();
        let spills = self.spills().count();
        let _ = writeln!(text, "{} variants, {refused} rejected, {spills} with spilled registers", self.variants.len());
        if !self.is_of_own_compiler() {
            self.spills().for_each(|spill| text.push_str(&format!("  another vendor's compiler: {spill}\n")));
        }
        if all {
            text.push_str(&self.variants_table());
        }
        if let Some(speed) = self.speed() {
            self.forecasts.iter().for_each(|forecast| text.push_str(&forecast.table(speed)));
        }
        text
    }

    /// A table of all variants compiled by a driver.
    fn variants_table(&self) -> String {
        let mut text = format!(
            "{:>5} {:>5} {:>6} {:>6} {:>5} {:>5} {:>9} {:>9}  kernel and variant\n",
            "VGPRs", "SGPRs", "spills", "LDS", "lanes", "occ.", "latency", "inv. thr."
        );
        for entry in &self.variants {
            let Some(of) = &entry.compiled else { continue };
            let _ = writeln!(
                text,
                "{:>5} {:>5} {:>6} {:>6} {:>5} {:>5} {:>9} {:>9}  {}",
                of.statistic("VGPRs"),
                of.statistic("SGPRs"),
                of.spills(),
                of.statistic("LDS size"),
                of.lanes,
                of.statistic("Subgroups per SIMD"),
                of.statistic("Latency"),
                of.statistic("Inverse Throughput"),
                entry.label()
            );
        }
        text
    }

    pub fn json(&self) -> Value {
        let forecast = |forecast: &Forecast| {
            let mut value = json!(forecast);
            value["label"] = json!(LABEL);
            value["tokens_per_second"] = json!(forecast.tokens_per_second());
            value["gap_seconds"] = json!(GAP);
            value
        };
        json!({
            "name": self.name,
            "about": self.about,
            "variants": self.variants,
            "failures": self.failures(),
            "forecasts": self.forecasts.iter().map(forecast).collect::<Vec<_>>(),
        })
    }
}

impl Forecast {
    fn table(&self, speed: Speed) -> String {
        let Speed { compute_units, clock, bandwidth, .. } = speed;
        let what = match self.rows {
            1 => format!("a decoded token at position {}", self.position),
            rows => format!("a prompt of {rows} tokens"),
        };
        let mut text = format!(
            "{what}, Llama-3.2-3B in q4f16_1, {compute_units} compute units at {} GHz, {} GB/s\n{LABEL}\n",
            clock / 1e9,
            bandwidth / 1e9
        );
        let header = ["count", "VGPRs", "spills", "occ.", "memory us", "SIMD us", "us", "GB/s share"];
        let [count, registers, spills, occupancy, memory, cycles, time, share] = header;
        let _ = writeln!(
            text,
            "{count:>5} {registers:>5} {spills:>6} {occupancy:>4} {memory:>9} {cycles:>9} {time:>9} {share:>10}  {:<14} \
             kernel and variant",
            "busiest"
        );
        for line in &self.lines {
            let _ = writeln!(
                text,
                "{:>5} {:>5} {:>6} {:>4} {:>9.1} {:>9.1} {:>9.1} {:>9.0}%  {:<14} {} {}",
                line.count,
                line.registers,
                line.spills,
                line.occupancy,
                1e6 * line.memory,
                1e6 * line.cycles,
                1e6 * line.seconds(),
                1e2 * line.memory / line.seconds(),
                if line.memory >= line.cycles { "memory" } else { &line.unit },
                line.kernel,
                line.variant
            );
        }
        let gaps = GAP * self.dispatches as f64;
        let _ = writeln!(
            text,
            "PREDICTED: {:.2} ms, of which {:.2} ms are gaps of {} us between {} dispatches: {:.1} tokens/s",
            1e3 * self.seconds,
            1e3 * gaps,
            1e6 * GAP,
            self.dispatches,
            self.tokens_per_second()
        );
        text
    }
}
