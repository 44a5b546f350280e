//! [`Source`]: a calibration text as the user names it, and its share of the windows.
//!
//! [`read_documents`](crate::read_documents) reads a file; [`DataSet::fetch`] downloads one from the hub.

use std::path::{Path, PathBuf};

use crate::{Error, Result, data_set::DataSet};

/// Origin of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The model generates the text.
    SelfGenerated,
    /// A local file.
    File(PathBuf),
    /// A data set of the hub.
    Hub(&'static DataSet),
}

/// A calibration text and its share of the windows.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The name that the user gave, without the weight.
    pub name: String,
    /// Origin of the text.
    pub place: Place,
    /// Relative share of the windows (see [`shares`]). Finite and greater than 0.
    pub weight: f64,
}

impl Source {
    /// The name of [`Place::SelfGenerated`].
    pub const SELF: &'static str = "self";

    /// Parses `NAME` or `NAME=WEIGHT`. A name is a path, a data set of [`DATA_SETS`](crate::DATA_SETS), or `self`. An
    /// existing file takes precedence over the other two. The default weight is 1.
    ///
    /// # Errors
    ///
    /// [`Error::BadWeight`], [`Error::UnknownSource`], and [`Error::TestSplit`] for a data set's test split.
    pub fn parse(text: &str) -> Result<Source> {
        let (name, weight) = match text.rsplit_once('=') {
            Some((name, weight)) if !Path::new(text).exists() => {
                let weight = weight.parse().ok().filter(|weight: &f64| *weight > 0.0 && weight.is_finite());
                (name, weight.ok_or_else(|| Error::BadWeight { source_name: text.into() })?)
            }
            _ => (text, 1.0),
        };
        let place = if Path::new(name).exists() {
            Place::File(name.into())
        } else if name == Source::SELF {
            Place::SelfGenerated
        } else {
            match DataSet::for_calibration(name)? {
                Some(data_set) => Place::Hub(data_set),
                None => return Err(Error::UnknownSource { source_name: name.into() }),
            }
        };
        Ok(Source { name: name.into(), place, weight })
    }
}

/// Divides `samples` windows in proportion to `weights`. The returned counts sum to `samples`.
pub fn shares(samples: usize, weights: &[f64]) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let mut before = 0;
    // Round the cumulative ends, not the shares: the counts then sum to `samples`.
    weights
        .iter()
        .map(|weight| {
            sum += weight;
            let end = (sum / total * samples as f64).round() as usize;
            end - std::mem::replace(&mut before, end)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_samples() {
        let check = |samples, weights: &[f64], expected: &[usize]| assert_eq!(shares(samples, weights), expected);
        check(128, &[1.0], &[128]);
        check(128, &[1.0, 1.0, 1.0], &[43, 42, 43]);
        check(10, &[3.0, 1.0], &[8, 2]);
        check(7, &[0.5, 0.25, 0.25], &[4, 1, 2]);
        check(1, &[1.0, 1.0], &[1, 0]);
    }

    #[test]
    fn parse_reads_names_weights_and_places() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a=2");
        std::fs::write(&file, "x").unwrap();
        let file = file.to_str().unwrap();
        let parse = |text: &str| Source::parse(text).map(|source| (source.place, source.weight));
        let hub = |name| Place::Hub(DataSet::for_calibration(name).unwrap().unwrap());
        assert_eq!(parse("self").unwrap(), (Place::SelfGenerated, 1.0));
        assert_eq!(parse("self=0.5").unwrap(), (Place::SelfGenerated, 0.5));
        assert_eq!(parse("wikitext2=3").unwrap(), (hub("wikitext2"), 3.0));
        // An existing file takes precedence, even if its name looks like a weight.
        assert_eq!(parse(file).unwrap(), (Place::File(file.into()), 1.0));
        assert_eq!(parse(&format!("{file}=7")).unwrap(), (Place::File(file.into()), 7.0));
        for (wrong, words) in [
            ("self=0", "not a positive number"),
            ("self=-1", "not a positive number"),
            ("self=inf", "not a positive number"),
            ("self=x", "not a positive number"),
            ("nowhere.txt", "`nowhere.txt`"),
            ("nowhere.txt=2", "`nowhere.txt`"),
            ("wikitext2:test", "evaluation"),
        ] {
            let error = Source::parse(wrong).unwrap_err();
            assert!(error.to_string().contains(words) && error.hint().is_some(), "{error}");
        }
    }
}
