//! Values of flags, parsed and checked.

pub fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "must be a number, 1 or more".into())
}

/// A positive number with a fraction: GiB, seconds.
pub fn size(text: &str) -> Result<f64, String> {
    let size = text.parse().ok().filter(|size: &f64| size.is_finite() && *size > 0.0);
    size.ok_or_else(|| "must be a number above 0".into())
}

/// Tokens of a window: it predicts all but the first.
pub fn window(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 1).ok_or_else(|| "must be a number, 2 or more".into())
}

/// Upper limit of an answer in tokens; `None` for no limit.
#[derive(Clone, Copy)]
pub struct TokenLimit(pub Option<usize>);

pub fn token_limit(text: &str) -> Result<TokenLimit, String> {
    match text {
        "none" => Ok(TokenLimit(None)),
        text => positive(text).map(|tokens| TokenLimit(Some(tokens))).map_err(|error| format!("{error}, or `none`")),
    }
}

/// A token id and the number to add to its logit.
pub fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    parsed.ok_or_else(|| "must be a token id and a number, such as 42=-1.5".into())
}

/// A bandwidth in bytes per second.
pub fn bandwidth(text: &str) -> Result<f64, String> {
    let units = [("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6)];
    let parsed = units.iter().find_map(|(unit, bytes)| {
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        Some(number * bytes)
    });
    let parsed = parsed.filter(|bandwidth| bandwidth.is_finite() && *bandwidth > 0.0);
    parsed.ok_or_else(|| "must be a number above 0 with its unit, such as 336GB/s".into())
}
