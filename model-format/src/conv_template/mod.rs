//! MLC's conversation templates, as data.

/// Names of all templates.
pub fn names() -> impl Iterator<Item = &'static str> {
    std::iter::empty()
}
