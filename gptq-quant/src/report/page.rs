//! The HTML page of a [`Report`]: `page.html` with plots, in one file.

use minijinja::{Environment, value::Serde};
use serde::Serialize;
use serde_json::json;

use super::{evaluate::Evaluation, matrix::MatrixReport, summary::Report};
use crate::solve::quantized::Method;

const TEMPLATE: &str = include_str!("page.html");

/// The suffix `.html` makes the template engine escape values.
const NAME: &str = "page.html";

/// The size of a plot in SVG units, and the margins for labels.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 60.0;
const BELOW: f64 = 24.0;
const ABOVE: f64 = 8.0;

/// Most labels on an axis.
const LABELS: usize = 6;

/// The page as HTML.
pub(super) fn page(report: &Report) -> String {
    let mut environment = Environment::new();
    environment.add_template(NAME, TEMPLATE).expect("the template is well-formed");
    let template = environment.get_template(NAME).expect("it was added");
    let evaluation = report.evaluation.as_ref().map(|evaluation| {
        let Evaluation { text, seq_len, float_perplexity, perplexity, divergence, windows, basis: _ } = evaluation;
        json!({
            "text": text, "seq_len": seq_len, "windows": windows.len(),
            "before": format!("{float_perplexity:.4}"),
            "after": format!("{perplexity:.4}"),
            "change": format!("{:+.2} %", (perplexity / float_perplexity - 1.0) * 100.0),
            "divergence": format!("{divergence:.5}"),
        })
    });
    let corrects_drift = report.settings["matrix"]["gptaq_alpha"].as_f64().is_some_and(|alpha| alpha > 0.0);
    let context = json!({
        "model": report.model, "program": report.program, "device": report.device,
        "count": report.matrices.len(), "sources": report.sources, "seq_len": report.seq_len,
        "beginning": report.beginning(),
        "settings": serde_json::to_string_pretty(&report.settings).expect("JSON serializes"),
        "plots": plots(report),
        "corrects_drift": corrects_drift,
        "rows": report.matrices.iter().map(|matrix| Row::new(matrix, corrects_drift)).collect::<Vec<_>>(),
        "bits_per_weight": format!("{:.3}", report.bits_per_weight()),
        "memory": report.peak_memory.map(|bytes| format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)),
        "seconds": report.seconds.iter().map(|(name, time)| (name, format!("{time:.1}"))).collect::<Vec<_>>(),
        "evaluation": evaluation,
    });
    template.render(Serde(context)).expect("the template takes what it is given")
}

/// A row of the table of matrices.
#[derive(Serialize)]
struct Row {
    module: String,
    shape: String,
    bits: String,
    error: String,
    nearest: String,
    gain: String,
    loss: String,
    method: String,
    scales: String,
    seconds: String,
    /// True if the matrix needs attention: rounded to nearest, or worse than round-to-nearest.
    is_odd: bool,
}

impl Row {
    /// With drift correction, an error above round-to-nearest is expected: the target is the float model's outputs.
    fn new(matrix: &MatrixReport, corrects_drift: bool) -> Row {
        let group = matrix.group_size.map_or("rows".to_owned(), |size| size.to_string());
        let sym = if matrix.sym { "symmetric" } else { "asymmetric" };
        let gain = matrix.nearest_error / matrix.relative_error;
        Row {
            module: matrix.module.clone(),
            shape: format!("{} × {}", matrix.shape[0], matrix.shape[1]),
            bits: format!("{} in {group}, {sym}", matrix.bits),
            error: format!("{:.4} %", matrix.relative_error * 100.0),
            nearest: format!("{:.4} %", matrix.nearest_error * 100.0),
            gain: if gain.is_finite() { format!("{gain:.2}") } else { String::new() },
            loss: matrix.loss.map_or(String::new(), |loss| format!("{loss:.4e}")),
            method: match matrix.method {
                Method::Gptq { damp_percent } => format!("{damp_percent}"),
                Method::RoundToNearest => "rounded to nearest".into(),
            },
            scales: format!("{:.2e} to {:.2e}", matrix.scales[0], matrix.scales[1]),
            seconds: format!("{:.2}", matrix.elapsed.as_secs_f64()),
            is_odd: matrix.method == Method::RoundToNearest || (gain < 1.0 && !corrects_drift),
        }
    }
}

fn plots(report: &Report) -> Vec<Plot> {
    let mut plots = Vec::new();
    let of_layers: Vec<&MatrixReport> = report.matrices.iter().filter(|matrix| matrix.layer.is_some()).collect();
    let mut kinds: Vec<&str> = Vec::new();
    for matrix in &of_layers {
        if !kinds.contains(&kind(matrix)) {
            kinds.push(kind(matrix));
        }
    }
    let line = |kind_of: &str, y: &dyn Fn(&MatrixReport) -> f64| -> Vec<(f64, f64)> {
        let matrices = of_layers.iter().filter(|matrix| kind(matrix) == kind_of);
        matrices.map(|matrix| (matrix.layer.unwrap_or(0) as f64, y(matrix))).collect()
    };
    for kind in kinds {
        let title = format!("{kind}: error of the outputs by layer, %");
        let lines = [
            ("round-to-nearest", line(kind, &|matrix| matrix.nearest_error * 100.0)),
            ("GPTQ", line(kind, &|matrix| matrix.relative_error * 100.0)),
        ];
        plots.extend(Plot::new(title, &lines, true));
    }
    let all = |y: &dyn Fn(&MatrixReport) -> f64| -> Vec<(f64, f64)> {
        report.matrices.iter().enumerate().map(|(i, matrix)| (i as f64, y(matrix))).collect()
    };
    let scales = [("smallest", all(&|m| f64::from(m.scales[0]))), ("largest", all(&|m| f64::from(m.scales[1])))];
    plots.extend(Plot::new("scales by matrix".into(), &scales, true));
    let seconds = [("seconds", all(&|m| m.elapsed.as_secs_f64()))];
    plots.extend(Plot::new("seconds for the codes by matrix".into(), &seconds, false));
    if let Some(evaluation) = &report.evaluation {
        let by_window = |i: usize| -> Vec<(f64, f64)> {
            evaluation.windows.iter().enumerate().map(|(w, of)| (w as f64, of[i])).collect()
        };
        let losses = [("before", by_window(0)), ("quantized", by_window(1))];
        plots.extend(Plot::new("loss by window, nats per token".into(), &losses, false));
        let divergences = [("divergence", by_window(2))];
        plots.extend(Plot::new("divergence by window, nats per token".into(), &divergences, false));
    }
    plots
}

/// The last part of the module's name.
fn kind(matrix: &MatrixReport) -> &str {
    matrix.module.rsplit('.').next().unwrap_or(&matrix.module)
}

/// A line plot, in SVG units.
#[derive(Serialize)]
struct Plot {
    title: String,
    width: f64,
    height: f64,
    left: f64,
    /// Height of the horizontal axis.
    bottom: f64,
    lines: Vec<Line>,
    /// Labels of the vertical axis by height, and of the horizontal axis by position.
    heights: Vec<(f64, String)>,
    places: Vec<(f64, String)>,
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    points: String,
    dots: Vec<(f64, f64)>,
}

impl Plot {
    /// A plot of lines; `None` without points. With `logarithmic`, leaves out values that are not positive.
    fn new(title: String, lines: &[(&'static str, Vec<(f64, f64)>)], logarithmic: bool) -> Option<Plot> {
        let height_of = |y: f64| if logarithmic { y.log10() } else { y };
        let points = || lines.iter().flat_map(|(_, points)| points.iter().map(|&(x, y)| (x, height_of(y))));
        let points = || points().filter(|(_, y)| y.is_finite());
        let range = |of: &dyn Fn((f64, f64)) -> f64| {
            points().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
        };
        let (first, last) = range(&|(x, _)| x);
        let (low, high) = range(&|(_, y)| y);
        if first > last {
            return None;
        }
        // Flat lines go to the middle.
        let (low, high) = match (logarithmic, high - low) {
            (true, _) => (low.floor(), high.ceil().max(low.floor() + 1.0)),
            (false, span) if span > 0.0 => (low.min(0.0), high),
            (false, _) => (low.min(0.0) - 0.5, high + 0.5),
        };
        let bottom = HEIGHT - BELOW;
        let x_of = |x: f64| LEFT + (WIDTH - LEFT - 8.0) * if last > first { (x - first) / (last - first) } else { 0.5 };
        let y_of = |y: f64| bottom - (bottom - ABOVE) * (y - low) / (high - low);
        let round = |v: f64| (v * 10.0).round() / 10.0;
        let lines = lines.iter().map(|(name, points)| {
            let dots = points.iter().map(|&(x, y)| (x, height_of(y))).filter(|(_, y)| y.is_finite());
            let dots: Vec<(f64, f64)> = dots.map(|(x, y)| (round(x_of(x)), round(y_of(y)))).collect();
            let points = dots.iter().map(|(x, y)| format!("{x},{y}")).collect::<Vec<_>>().join(" ");
            Line { name, points, dots }
        });
        let lines = lines.collect();
        let step = |span: f64| (span / LABELS as f64).ceil().max(1.0);
        let ticks = |from: f64, to: f64, step: f64| {
            let count = ((to - from) / step + 1e-9) as usize;
            (0..=count).map(move |i| from + i as f64 * step)
        };
        let heights = if logarithmic {
            ticks(low, high, step(high - low))
                .map(|y| (round(y_of(y)), format!("{:e}", 10f64.powi(y as i32))))
                .collect()
        } else {
            ticks(low, high, (high - low) / 4.0).map(|y| (round(y_of(y)), format!("{y:.3}"))).collect()
        };
        let places = ticks(first, last, step(last - first)).map(|x| (round(x_of(x)), format!("{x}"))).collect();
        Some(Plot { title, width: WIDTH, height: HEIGHT, left: LEFT, bottom, lines, heights, places })
    }
}
