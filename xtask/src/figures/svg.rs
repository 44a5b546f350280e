//! A small SVG writer: text, rectangles and a style that reads in light and in dark surroundings.

use std::fmt::Write;

/// Width of every picture, in pixels.
pub const WIDTH: f64 = 820.0;
/// Space around the content.
pub const MARGIN: f64 = 24.0;

/// Colors by class. The card behind the picture has its own color, so that the text reads on any page.
const STYLE: &str = "\
svg{font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}\
.card{fill:#fff;stroke:#d1d9e0}.text{fill:#1f2328}.muted{fill:#59636e}.box{fill:#f6f8fa;stroke:#d1d9e0}\
.line{stroke:#59636e}.track{fill:#eef1f4}.s0{fill:#0969da}.s1{fill:#bc6a00}.s2{fill:#8b949e}.s3{fill:#b8c0c8}\
.title{font-size:16px;font-weight:600}.bold{font-weight:600}.small{font-size:11.5px}.code{font-family:ui-monospace,monospace}\
@media(prefers-color-scheme:dark){.card{fill:#0d1117;stroke:#3d444d}.text{fill:#e6edf3}.muted{fill:#9198a1}\
.box{fill:#151b23;stroke:#3d444d}.line{stroke:#9198a1}.track{fill:#1c232c}.s0{fill:#58a6ff}.s1{fill:#e3a03c}\
.s2{fill:#7d8590}.s3{fill:#545d68}}";

/// A picture that grows downwards.
#[derive(Default)]
pub struct Svg {
    body: String,
}

impl Svg {
    /// Text whose baseline is at `y`; `anchor` is `start`, `middle` or `end`.
    pub fn text(&mut self, x: f64, y: f64, classes: &str, anchor: &str, text: &str) {
        let text = escaped(text);
        writeln!(self.body, "<text x=\"{x}\" y=\"{y}\" class=\"{classes}\" text-anchor=\"{anchor}\">{text}</text>")
            .expect("writing to a string");
    }

    /// An element as it is.
    pub fn raw(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    pub fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, radius: f64, class: &str) {
        let width = (width * 10.0).round() / 10.0;
        writeln!(
            self.body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{radius}\" class=\"{class}\"/>"
        )
        .expect("writing to a string");
    }

    /// A horizontal arrow.
    pub fn arrow(&mut self, from: f64, to: f64, y: f64) {
        let (head, above, below) = (to - 6.0, y - 4.0, y + 4.0);
        writeln!(
            self.body,
            "<path d=\"M{from} {y}H{to}M{head} {above}L{to} {y}L{head} {below}\" fill=\"none\" class=\"line\"/>"
        )
        .expect("writing to a string");
    }

    /// The whole file. `description` is for screen readers.
    pub fn finish(self, height: f64, title: &str, description: &str) -> String {
        let (title, description) = (escaped(title), escaped(description));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\">\n<title>{title}</title>\n<desc>{description}</desc>\n\
             <style>{STYLE}</style>\n\
             <rect x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"8\" class=\"card\"/>\n{}</svg>\n",
            WIDTH - 1.0,
            height - 1.0,
            self.body
        )
    }
}

/// Text for an element or an attribute.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number with thousands separated: `21,106` or `29.07`.
pub fn number(value: f64, decimals: usize) -> String {
    let plain = format!("{value:.decimals$}");
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if fraction.is_empty() { grouped } else { format!("{grouped}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(number(21106.0, 0), "21,106");
        assert_eq!(number(936.4, 0), "936");
        assert_eq!(number(29.068, 2), "29.07");
        assert_eq!(number(1_234_567.5, 1), "1,234,567.5");
    }

    #[test]
    fn text_cannot_leave_its_element() {
        let mut svg = Svg::default();
        svg.text(1.0, 2.0, "a", "end", "<b> & \"c\"");
        let picture = svg.finish(10.0, "t", "d");
        assert!(picture.contains(">&lt;b&gt; &amp; &quot;c&quot;</text>"));
    }
}
