//! [`Source`]: what a user names as calibration text, and how much of the windows it is to be.
//!
//! Read by [`read_documents`](crate::read_documents) or from a [`DataSet`] of the hub.

use std::path::{Path, PathBuf};

use crate::{Error, Result, data_set::DataSet};

/// Where a text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The model writes it itself.
    Myself,
    /// A file of this machine.
    File(PathBuf),
    /// A data set of the hub.
    Hub(&'static DataSet),
}

/// A text, and how much of the windows it is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// As the user named it.
    pub name: String,
    /// Where it comes from.
    pub place: Place,
    /// Its share, in proportion to that of the others. More than 0.
    pub weight: f64,
}

impl Source {
    /// The word for text that the model writes itself.
    pub const MYSELF: &'static str = "self";

    /// Reads `NAME` or `NAME=WEIGHT`, where a name is a file, one of [`DATA_SETS`](crate::DATA_SETS), or `self`. A file
    /// that exists wins over a name.
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
        } else if name == Source::MYSELF {
            Place::Myself
        } else {
            match DataSet::for_calibration(name)? {
                Some(data_set) => Place::Hub(data_set),
                None => return Err(Error::UnknownSource { source_name: name.into() }),
            }
        };
        Ok(Source { name: name.into(), place, weight })
    }
}

/// Divides `samples` windows among sources of these weights: each its share, rounded so that the sum is right.
pub fn shares(samples: usize, weights: &[f64]) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let mut before = 0;
    // The ends of the shares are rounded, so that no window is lost and none is there twice.
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
    fn shares_add_up() {
        let check = |samples, weights: &[f64], expected: &[usize]| assert_eq!(shares(samples, weights), expected);
        check(128, &[1.0], &[128]);
        check(128, &[1.0, 1.0, 1.0], &[43, 42, 43]);
        check(10, &[3.0, 1.0], &[8, 2]);
        check(7, &[0.5, 0.25, 0.25], &[4, 1, 2]);
        check(1, &[1.0, 1.0], &[1, 0]);
    }

    #[test]
    fn names_weights_and_places() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a=2");
        std::fs::write(&file, "x").unwrap();
        let file = file.to_str().unwrap();
        let parse = |text: &str| Source::parse(text).map(|source| (source.place, source.weight));
        let hub = |name| Place::Hub(DataSet::for_calibration(name).unwrap().unwrap());
        assert_eq!(parse("self").unwrap(), (Place::Myself, 1.0));
        assert_eq!(parse("self=0.5").unwrap(), (Place::Myself, 0.5));
        assert_eq!(parse("wikitext2=3").unwrap(), (hub("wikitext2"), 3.0));
        // A file that exists wins, whatever its name.
        assert_eq!(parse(file).unwrap(), (Place::File(file.into()), 1.0));
        assert_eq!(parse(&format!("{file}=7")).unwrap(), (Place::File(file.into()), 7.0));
        for (wrong, words) in [
            ("self=0", "not a share"),
            ("self=-1", "not a share"),
            ("self=inf", "not a share"),
            ("self=x", "not a share"),
            ("nowhere.txt", "`nowhere.txt`"),
            ("nowhere.txt=2", "`nowhere.txt`"),
            ("wikitext2:test", "measured"),
        ] {
            let error = Source::parse(wrong).unwrap_err();
            assert!(error.to_string().contains(words) && error.hint().is_some(), "{error}");
        }
    }
}
