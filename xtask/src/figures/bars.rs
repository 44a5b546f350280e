//! Horizontal bars in panels; bars of one panel share a scale that begins at 0.

use std::fmt::Write;

use anyhow::Result;

use super::{
    data::{Bars, Panel},
    svg::{MARGIN, Svg, WIDTH, number},
};

/// Where bars begin: labels are to the left.
const BARS: f64 = 250.0;
/// Space for the values behind the longest bar.
const VALUES: f64 = 90.0;
const BAR: f64 = 16.0;

/// The picture of a data file.
pub fn draw(text: &str) -> Result<String> {
    let data = Bars::parse(text)?;
    let mut svg = Svg::default();
    let mut y = MARGIN + 16.0;
    svg.text(MARGIN, y, "text title", "start", &data.title);
    y += 20.0;
    svg.text(MARGIN, y, "muted", "start", &data.subtitle);
    if data.series.len() > 1 {
        y += 26.0;
        let mut x = MARGIN;
        for (index, series) in data.series.iter().enumerate() {
            svg.rectangle(x, y - 10.0, 12.0, 12.0, 2.0, &class(index));
            svg.text(x + 18.0, y, "text", "start", series);
            x += 42.0 + 7.0 * series.chars().count() as f64;
        }
    }
    for panel in &data.panels {
        y = draw_panel(&mut svg, &data, panel, y + 30.0);
    }
    y += 26.0;
    for line in sources(&data) {
        svg.text(MARGIN, y, "muted small", "start", &line);
        y += 16.0;
    }
    Ok(svg.finish(y + MARGIN - 16.0, &data.title, &description(&data)))
}

/// Draws a panel from `y` on and returns where it ends.
fn draw_panel(svg: &mut Svg, data: &Bars, panel: &Panel, mut y: f64) -> f64 {
    let values = panel.rows.iter().flat_map(|row| &row.bars).map(|bar| bar.value);
    let limit = panel.limit.unwrap_or(values.fold(0.0, f64::max));
    let width = WIDTH - MARGIN - VALUES - BARS;
    if !panel.title.is_empty() {
        svg.text(MARGIN, y, "text bold", "start", &panel.title);
        y += 10.0;
    }
    for row in &panel.rows {
        let height = row.bars.len() as f64 * (BAR + 3.0);
        svg.text(BARS - 12.0, y + height / 2.0 + 3.0, "text", "end", &row.label);
        for bar in &row.bars {
            let index = data.series.iter().position(|series| *series == bar.series).expect("checked when read");
            if panel.track {
                svg.rectangle(BARS, y, width, BAR, 2.0, "track");
            }
            svg.rectangle(BARS, y, width * bar.value / limit, BAR, 2.0, &class(index));
            let value = value(panel, bar.value);
            let end = if panel.track { WIDTH - MARGIN - VALUES } else { BARS + width * bar.value / limit };
            let weight = if index == 0 { "text bold" } else { "text" };
            svg.text((end + 8.0).round(), y + 12.5, weight, "start", &value);
            y += BAR + 3.0;
        }
        y += 8.0;
    }
    y
}

fn class(series: usize) -> String {
    format!("s{series}")
}

fn value(panel: &Panel, value: f64) -> String {
    format!("{}{}", number(value, panel.decimals), panel.unit)
}

/// Devices and commits, the lines below a picture.
fn sources(data: &Bars) -> Vec<String> {
    let mut devices: Vec<(&str, Vec<&str>)> = Vec::new();
    for run in data.runs.values() {
        match devices.iter_mut().find(|(device, _)| *device == run.device) {
            Some((_, commits)) if commits.contains(&run.commit.as_str()) => {}
            Some((_, commits)) => commits.push(&run.commit),
            None => devices.push((&run.device, vec![&run.commit])),
        }
    }
    let line = |(device, commits): (&str, Vec<&str>)| {
        let noun = if commits.len() == 1 { "commit" } else { "commits" };
        format!("{device}; {noun} {}", commits.join(", "))
    };
    devices.into_iter().map(line).collect()
}

/// The values as a sentence.
fn description(data: &Bars) -> String {
    let mut text = format!("{}.", data.subtitle);
    for panel in &data.panels {
        for row in &panel.rows {
            for bar in &row.bars {
                let series = if data.series.len() > 1 { format!(", {}", bar.series) } else { String::new() };
                let value = value(panel, bar.value);
                write!(text, " {} {}{series}: {value}.", panel.title, row.label).expect("writing to a string");
            }
        }
    }
    text
}
