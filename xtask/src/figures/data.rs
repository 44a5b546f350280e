//! The form of `benches/results/*.json`. Every value names the run that it comes from; a run has its device, commit and
//! command.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Where values come from.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Hardware and driver.
    pub device: String,
    /// Commit of the program that was measured.
    pub commit: String,
    /// The command, as typed in the root of the repository.
    pub command: String,
    /// Other conditions, for example which of several samples it is.
    #[serde(default)]
    pub note: Option<String>,
}

/// Data of a bar chart.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bars {
    pub title: String,
    pub subtitle: String,
    /// Shown as the legend, in order; the first is ours.
    pub series: Vec<String>,
    pub panels: Vec<Panel>,
    pub runs: BTreeMap<String, Run>,
}

/// Bars that share a scale.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Panel {
    pub title: String,
    pub decimals: usize,
    #[serde(default)]
    pub unit: String,
    /// The value of the whole width; the largest value if absent.
    #[serde(default)]
    pub limit: Option<f64>,
    /// Show the whole width behind each bar, with the values at its end.
    #[serde(default)]
    pub track: bool,
    pub rows: Vec<Row>,
}

/// Bars under one label.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub label: String,
    pub bars: Vec<Bar>,
}

/// One measured value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bar {
    pub series: String,
    pub value: f64,
    pub run: String,
}

/// Data of a row of boxes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stages {
    pub title: String,
    pub stages: Vec<Stage>,
    pub runs: BTreeMap<String, Run>,
}

/// A box, and the program on the arrow that leads to it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    #[serde(default)]
    pub by: Option<String>,
    pub title: String,
    pub facts: Vec<Fact>,
}

/// A line in a box.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    pub text: String,
    /// The run that a measured figure comes from.
    #[serde(default)]
    pub run: Option<String>,
}

impl Bars {
    pub fn parse(text: &str) -> Result<Bars> {
        let bars: Bars = serde_json::from_str(text)?;
        let all = || bars.panels.iter().flat_map(|panel| &panel.rows).flat_map(|row| &row.bars);
        check_runs(&bars.runs, all().map(|bar| bar.run.as_str()))?;
        for bar in all() {
            ensure!(bar.value.is_finite() && bar.value > 0.0, "a value is {}", bar.value);
            ensure!(bars.series.contains(&bar.series), "series `{}` is not in the legend", bar.series);
        }
        Ok(bars)
    }
}

impl Stages {
    pub fn parse(text: &str) -> Result<Stages> {
        let stages: Stages = serde_json::from_str(text)?;
        let facts = stages.stages.iter().flat_map(|stage| &stage.facts);
        check_runs(&stages.runs, facts.filter_map(|fact| fact.run.as_deref()))?;
        Ok(stages)
    }
}

/// Every run is used and complete, and every name that is used is a run.
fn check_runs<'a>(runs: &BTreeMap<String, Run>, used: impl Iterator<Item = &'a str>) -> Result<()> {
    let used: Vec<&str> = used.collect();
    for name in &used {
        runs.get(*name).with_context(|| format!("`{name}` is not among the runs"))?;
    }
    for (name, run) in runs {
        ensure!(used.contains(&name.as_str()), "run `{name}` gives no value");
        let is_commit = run.commit.len() >= 7 && run.commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(is_commit, "run `{name}`: `{}` is not a commit", run.commit);
        ensure!(!run.device.is_empty() && !run.command.is_empty(), "run `{name}` lacks its device or command");
        ensure!(run.note.as_ref().is_none_or(|note| !note.is_empty()), "run `{name}` has an empty note");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &str, run: &str, commit: &str, expected: &str) {
        let text = format!(
            r#"{{"title": "t", "subtitle": "s", "series": ["a"], "panels": [{{"title": "p", "decimals": 0, "rows":
                [{{"label": "l", "bars": [{{"series": "a", "value": {value}, "run": "{run}"}}]}}]}}],
                "runs": {{"r": {{"device": "d", "commit": "{commit}", "command": "c"}}}}}}"#
        );
        let found = Bars::parse(&text).map_or_else(|error| error.to_string(), |_| "complete".into());
        assert_eq!(found, expected);
    }

    #[test]
    fn a_value_without_a_complete_run_is_refused() {
        check("1", "r", "2f0e63a", "complete");
        check("-1", "r", "2f0e63a", "a value is -1");
        check("1", "q", "2f0e63a", "`q` is not among the runs");
        check("1", "r", "today", "run `r`: `today` is not a commit");
    }
}
