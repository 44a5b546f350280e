//! A recorded terminal session as an animated SVG.
//!
//! The data file is an asciicast (version 2, <https://docs.asciinema.org/manual/asciicast/v2/>): a header, then one line per
//! output with its time in seconds. A terminal emulator turns it into rows of text. Each piece of text appears at its time,
//! by CSS alone. A viewer without animations shows the last screen.

use std::{fmt::Write, mem};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::svg::{MARGIN, Svg, WIDTH, escaped};

/// Width of a character and distance between rows, in pixels, for text of 13 pixels.
const CELL: f64 = 7.8;
const ROW: f64 = 18.0;
/// Outputs within this time, in seconds, appear together, for example those that redraw a line.
const FRAME: f64 = 0.08;
/// Prompts of the shell and of `chat-cli`. A row with one is the user's input.
const PROMPTS: [&str; 2] = ["$ ", ">>> "];

const STYLE: &str = "\
text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}\
.title{font:600 13px system-ui,sans-serif}\
.in{font-weight:600;fill:#0969da}.keep{animation:hide 0s steps(1)}.drop{opacity:0;animation:show 0s}\
@keyframes hide{0%,to{opacity:0}}@keyframes show{0%,to{opacity:1}}\
@media(prefers-color-scheme:dark){.in{fill:#58a6ff}}\
@media(prefers-reduced-motion:reduce){.keep,.drop{animation:none}}";

/// The header of a recording.
#[derive(Deserialize)]
struct Header {
    version: u32,
    width: u16,
    height: u16,
    title: String,
    /// Longer pauses are shortened to this many seconds.
    idle_time_limit: f64,
    device: String,
    commit: String,
}

/// A piece of a row.
struct Piece {
    row: usize,
    column: usize,
    text: String,
    is_input: bool,
    /// When it appears, in seconds.
    from: f64,
    /// When it disappears; `None` for the text of the last screen.
    until: Option<f64>,
}

/// The picture of a data file.
pub fn draw(cast: &str) -> Result<String> {
    let (header, outputs) = parse(cast)?;
    let (pieces, last) = pieces(&header, &outputs);
    let rows = last.iter().rposition(|row| !row.is_empty()).map_or(0, |row| row + 1);
    ensure!(rows > 0, "the recording ends with an empty screen");
    let mut svg = Svg::default();
    svg.raw(&format!("<style>{STYLE}</style>"));
    svg.text(MARGIN, MARGIN + 10.0, "muted title", "start", &header.title);
    let top = MARGIN + 38.0;
    for piece in &pieces {
        svg.raw(&piece.svg(top));
    }
    let bottom = top + rows as f64 * ROW;
    let source = format!("{}, commit {}", header.device, header.commit);
    svg.text(WIDTH - MARGIN, MARGIN + 10.0, "muted title", "end", &source);
    Ok(svg.finish(bottom + 6.0, &header.title, &last[..rows].join("\n")))
}

/// The header and the outputs, each with its time.
fn parse(cast: &str) -> Result<(Header, Vec<(f64, String)>)> {
    let mut lines = cast.lines();
    let header: Header = serde_json::from_str(lines.next().context("the recording is empty")?)?;
    ensure!(header.version == 2, "the recording has version {}, expected 2", header.version);
    let available = WIDTH - 2.0 * MARGIN;
    ensure!(f64::from(header.width) * CELL <= available, "the recording has more than {available} pixels of columns");
    let mut outputs = Vec::new();
    for line in lines {
        let (time, kind, text): (f64, String, String) = serde_json::from_str(line)?;
        if kind == "o" {
            outputs.push((time, text));
        }
    }
    Ok((header, outputs))
}

/// The pieces of all rows, and the rows of the last screen.
fn pieces(header: &Header, outputs: &[(f64, String)]) -> (Vec<Piece>, Vec<String>) {
    let mut terminal = vt100::Parser::new(size(header.height), size(header.width), 0);
    let mut rows = vec![String::new(); header.height.into()];
    // Pieces of each row as it is now.
    let mut shown: Vec<Vec<Piece>> = rows.iter().map(|_| Vec::new()).collect();
    let mut finished = Vec::new();
    let (mut now, mut before, mut frame) = (0.0, 0.0, 0.0);
    let mut outputs = outputs.iter().peekable();
    while let Some((time, text)) = outputs.next() {
        now += (time - before).min(header.idle_time_limit);
        before = *time;
        terminal.process(text.as_bytes());
        if outputs.peek().is_some_and(|(next, _)| next - frame < FRAME) {
            continue;
        }
        frame = outputs.peek().map_or(*time, |(next, _)| *next);
        for (index, new) in terminal.screen().rows(0, header.width).enumerate() {
            let old = mem::replace(&mut rows[index], new.trim_end().to_string());
            update(&mut shown[index], &mut finished, index, &old, &rows[index], now);
        }
    }
    finished.extend(shown.into_iter().flatten());
    (finished, rows)
}

fn size(cells: u16) -> std::num::NonZeroU16 {
    cells.try_into().unwrap_or(std::num::NonZeroU16::MIN)
}

/// Adds the end of a row that grew. A row that changed otherwise is replaced.
fn update(shown: &mut Vec<Piece>, finished: &mut Vec<Piece>, row: usize, old: &str, new: &str, now: f64) {
    if old == new {
        return;
    }
    let added = match new.strip_prefix(old) {
        Some(added) => added,
        None => {
            finished.extend(shown.drain(..).map(|piece| Piece { until: Some(now), ..piece }));
            new
        }
    };
    let blanks = added.len() - added.trim_start_matches(' ').len();
    let column = new[..new.len() - added.len() + blanks].chars().count();
    let text = added[blanks..].to_string();
    if !text.is_empty() {
        let is_input = PROMPTS.iter().any(|prompt| new.starts_with(prompt.trim_end()));
        shown.push(Piece { row, column, text, is_input, from: now, until: None });
    }
}

impl Piece {
    fn svg(&self, top: f64) -> String {
        let (x, y) = (MARGIN + self.column as f64 * CELL, top + self.row as f64 * ROW);
        let length = self.text.chars().count() as f64 * CELL;
        let color = if self.is_input { "in" } else { "text" };
        let from = self.from;
        let mut svg = format!("<text x=\"{x:.1}\" y=\"{y}\" textLength=\"{length:.1}\" ");
        match self.until {
            None => write!(svg, "class=\"{color} keep\" style=\"animation-duration:{from:.2}s\">"),
            Some(until) => write!(
                svg,
                "class=\"{color} drop\" style=\"animation-delay:{from:.2}s;animation-duration:{:.2}s\">",
                until - from
            ),
        }
        .expect("writing to a string");
        svg + &escaped(&self.text) + "</text>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = r#"{"version":2,"width":20,"height":4,"title":"A <title>","idle_time_limit":1.0,"device":"CPU","commit":"abc"}"#;

    fn drawn(outputs: &[(f64, &str)]) -> Vec<(usize, usize, String, f64, Option<f64>)> {
        let outputs: String =
            outputs.iter().map(|(time, text)| format!("\n[{time},\"o\",{}]", serde_json::json!(text))).collect();
        let (header, outputs) = parse(&format!("{HEADER}{outputs}")).unwrap();
        let (pieces, _) = pieces(&header, &outputs);
        pieces.into_iter().map(|piece| (piece.row, piece.column, piece.text, piece.from, piece.until)).collect()
    }

    #[test]
    fn text_appears_piece_by_piece() {
        let pieces = drawn(&[(0.5, "$ "), (0.7, "a"), (0.9, "b\r\n"), (1.1, "one"), (1.3, " two")]);
        let text = |text: &str| text.to_string();
        let expected = [
            (0, 0, text("$"), 0.5, None),
            (0, 2, text("a"), 0.7, None),
            (0, 3, text("b"), 0.9, None),
            (1, 0, text("one"), 1.1, None),
            (1, 4, text("two"), 1.3, None),
        ];
        assert_eq!(pieces.len(), expected.len());
        for (found, expected) in pieces.iter().zip(&expected) {
            assert_eq!((found.0, found.1, &found.2, found.4), (expected.0, expected.1, &expected.2, expected.4));
            assert!((found.3 - expected.3).abs() < 1e-9);
        }
    }

    #[test]
    fn a_redrawn_row_replaces_the_old_one() {
        let pieces = drawn(&[(0.25, "loading 10%"), (0.5, "\r\x1b[Kloading 90%"), (0.75, "\r\x1b[Kdone")]);
        let until: Vec<(&str, Option<f64>)> = pieces.iter().map(|piece| (piece.2.as_str(), piece.4)).collect();
        assert_eq!(until, [("loading 10%", Some(0.5)), ("loading 90%", Some(0.75)), ("done", None)]);
    }

    #[test]
    fn long_pauses_are_shortened_and_short_ones_joined() {
        let pieces = drawn(&[(0.5, "a"), (60.0, "b"), (60.02, "c")]);
        let times: Vec<(&str, f64)> =
            pieces.iter().map(|piece| (piece.2.as_str(), (piece.3 * 100.0).round())).collect();
        assert_eq!(times, [("a", 50.0), ("bc", 152.0)]);
    }

    #[test]
    fn the_picture_escapes_its_text() {
        let svg = draw(&format!("{HEADER}\n[0.1,\"o\",\"<b>\"]")).unwrap();
        assert!(svg.contains(">&lt;b&gt;</text>") && svg.contains("A &lt;title&gt;"), "{svg}");
    }
}
