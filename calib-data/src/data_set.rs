//! [`DATA_SETS`]: data sets of the hub by the names that quantizers' papers call them.

use std::path::PathBuf;

use model_hub::{HubConfig, Progress, fetch_data_file};

use crate::{Error, Result};

/// What a part of a data set is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// To learn from.
    Train,
    /// To choose settings by.
    Validation,
    /// To measure with, and nothing else.
    Test,
}

/// A part of a data set: one file of the hub.
#[derive(Debug, PartialEq, Eq)]
pub struct DataSet {
    /// What it is called.
    pub name: &'static str,
    /// Which part this is.
    pub split: Split,
    /// The repository, `org/name` or `org/name@revision`.
    pub repository: &'static str,
    /// The file in it.
    pub file: &'static str,
    /// The field of a record that holds its text.
    pub column: &'static str,
    /// What stands between the records where they are one text, as GPTQ's authors join them; `None` where each stands
    /// for itself.
    pub join: Option<&'static str>,
}

/// Every data set that has a name. Its first line is what the name alone means for calibration.
pub const DATA_SETS: &[DataSet] = &[
    wikitext2(Split::Train, "wikitext-2-raw-v1/train-00000-of-00001.parquet"),
    wikitext2(Split::Validation, "wikitext-2-raw-v1/validation-00000-of-00001.parquet"),
    wikitext2(Split::Test, "wikitext-2-raw-v1/test-00000-of-00001.parquet"),
    c4(Split::Train, "en/c4-train.00000-of-01024.json.gz"),
    c4(Split::Validation, "en/c4-validation.00000-of-00008.json.gz"),
    ptb(Split::Train, "penn_treebank/train/0000.parquet"),
    ptb(Split::Validation, "penn_treebank/validation/0000.parquet"),
    ptb(Split::Test, "penn_treebank/test/0000.parquet"),
];

const fn wikitext2(split: Split, file: &'static str) -> DataSet {
    let (repository, column) = ("Salesforce/wikitext", "text");
    DataSet { name: "wikitext2", split, repository, file, column, join: Some("\n\n") }
}

const fn c4(split: Split, file: &'static str) -> DataSet {
    DataSet { name: "c4", split, repository: "allenai/c4", file, column: "text", join: None }
}

const fn ptb(split: Split, file: &'static str) -> DataSet {
    // Its own files are a program that fetches them; the hub keeps what that gives.
    let repository = "ptb-text-only/ptb_text_only@refs/convert/parquet";
    DataSet { name: "ptb", split, repository, file, column: "sentence", join: Some(" ") }
}

impl DataSet {
    /// What `NAME` or `NAME:SPLIT` means for calibration: without a split, the part to learn from. The part that models
    /// are measured with is refused.
    pub fn for_calibration(name: &str) -> Result<Option<&'static DataSet>> {
        match DataSet::find(name, Split::Train)? {
            Some(DataSet { split: Split::Test, .. }) => Err(Error::TestSplit { source_name: name.into() }),
            found => Ok(found),
        }
    }

    /// What `NAME` or `NAME:SPLIT` means for a measurement: without a split, the last part there is.
    pub fn for_evaluation(name: &str) -> Result<Option<&'static DataSet>> {
        DataSet::find(name, Split::Test)
    }

    fn find(text: &str, default: Split) -> Result<Option<&'static DataSet>> {
        let (name, split) = match text.split_once(':') {
            Some((name, split)) => (name, Some(split)),
            None => (text, None),
        };
        let mut parts = DATA_SETS.iter().filter(|data_set| data_set.name == name).peekable();
        if parts.peek().is_none() {
            return Ok(None);
        }
        let wanted = match split {
            None => None,
            Some("train") => Some(Split::Train),
            Some("validation") => Some(Split::Validation),
            Some("test") => Some(Split::Test),
            Some(_) => return Err(Error::UnknownSource { source_name: text.into() }),
        };
        let found = match (wanted, default) {
            (Some(wanted), _) => parts.find(|data_set| data_set.split == wanted),
            (None, Split::Train) => parts.next(),
            (None, _) => parts.last(),
        };
        found.map(Some).ok_or_else(|| Error::UnknownSource { source_name: text.into() })
    }

    /// The file, from the hub's cache or from the hub.
    pub fn fetch(&self, hub: &HubConfig, progress: &mut dyn Progress) -> Result<PathBuf> {
        Ok(fetch_data_file(self.repository, self.file, hub, progress)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_part_is_for_measuring_alone() {
        for data_set in DATA_SETS {
            let split = format!("{:?}", data_set.split).to_lowercase();
            assert!(data_set.file.contains(&split), "{data_set:?}");
            let name = format!("{}:{split}", data_set.name);
            let found = DataSet::for_calibration(&name);
            assert_eq!(found.is_err(), data_set.split == Split::Test, "{name}");
            assert_eq!(DataSet::for_evaluation(&name).unwrap(), Some(data_set));
            assert_eq!(DataSet::for_calibration(data_set.name).unwrap().unwrap().split, Split::Train);
        }
        assert_eq!(DataSet::for_evaluation("wikitext2").unwrap().unwrap().split, Split::Test);
        assert_eq!(DataSet::for_evaluation("c4").unwrap().unwrap().split, Split::Validation);
        assert_eq!(DataSet::for_calibration("pile").unwrap(), None);
        assert!(DataSet::for_calibration("c4:test").is_err());
        assert!(DataSet::for_calibration("c4:all").is_err());
    }
}
