//! Boxes in a row, with the programs that lead from one to the next.

use anyhow::Result;

use super::{
    data::Stages,
    svg::{MARGIN, Svg, WIDTH},
};

const GAP: f64 = 104.0;
const LINE: f64 = 19.0;

/// The picture of a data file.
pub fn draw(text: &str) -> Result<String> {
    let data = Stages::parse(text)?;
    let count = data.stages.len() as f64;
    let width = ((WIDTH - 2.0 * MARGIN - GAP * (count - 1.0)) / count).floor();
    let lines = data.stages.iter().map(|stage| stage.facts.len()).max().unwrap_or(0) as f64;
    let (top, height) = (MARGIN, 44.0 + lines * LINE);
    let mut svg = Svg::default();
    let mut description = Vec::new();
    for (index, stage) in data.stages.iter().enumerate() {
        let x = MARGIN + index as f64 * (width + GAP);
        let middle = x + width / 2.0;
        if let Some(by) = &stage.by {
            let y = top + height / 2.0;
            svg.arrow(x - GAP + 6.0, x - 6.0, y);
            for (line, name) in by.split('\n').enumerate() {
                let y = if line == 0 { y - 8.0 } else { y + 5.0 + 15.0 * line as f64 };
                svg.text(x - GAP / 2.0, y, "text small code", "middle", name);
            }
        }
        svg.rectangle(x, top, width, height, 6.0, "box");
        svg.text(middle, top + 26.0, "text bold", "middle", &stage.title);
        for (line, fact) in stage.facts.iter().enumerate() {
            svg.text(middle, top + 30.0 + (line as f64 + 1.0) * LINE, "muted small", "middle", &fact.text);
        }
        let facts: Vec<&str> = stage.facts.iter().map(|fact| fact.text.as_str()).collect();
        description.push(format!("{}: {}.", stage.title, facts.join("; ")));
    }
    Ok(svg.finish(top + height + MARGIN, &data.title, &description.join(" ")))
}
