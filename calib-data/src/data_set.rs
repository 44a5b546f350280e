//! [`DATA_SETS`]: data sets of the hub, under the names that quantization papers use.

use std::path::PathBuf;

use model_hub::{HubConfig, Progress, fetch_data_file};

use crate::{Error, Result};

/// A split of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// For training, and for calibration.
    Train,
    /// For choosing settings.
    Validation,
    /// For evaluation only.
    Test,
}

/// One split of a data set, stored as one file on the hub.
#[derive(Debug, PartialEq, Eq)]
pub struct DataSet {
    /// Name on the command line, for example `wikitext2`. Shared by all splits.
    pub name: &'static str,
    /// The split in this file.
    pub split: Split,
    /// Repository: `org/name` or `org/name@revision`.
    pub repository: &'static str,
    /// Path of the file in the repository.
    pub file: &'static str,
    /// Field of a record that contains its text.
    pub column: &'static str,
    /// Separator that joins all records into one text, as in GPTQ's own code (`datautils.py` of IST-DASLab/gptq).
    /// `None` if each record is a separate text.
    pub join: Option<&'static str>,
}

/// The known data sets, grouped by name. The first entry of a name is its default split for calibration.
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
    // The repository itself has a loading script instead of data; the hub keeps the script's output on this revision.
    let repository = "ptb-text-only/ptb_text_only@refs/convert/parquet";
    DataSet { name: "ptb", split, repository, file, column: "sentence", join: Some(" ") }
}

impl DataSet {
    /// Finds the data set `NAME` or `NAME:SPLIT` for calibration. The default split is [`Split::Train`]. `None` if no
    /// data set has this name.
    ///
    /// # Errors
    ///
    /// [`Error::TestSplit`] for a test split, [`Error::UnknownSource`] for a split that the data set does not have.
    pub fn for_calibration(name: &str) -> Result<Option<&'static DataSet>> {
        match DataSet::find(name, Split::Train)? {
            Some(DataSet { split: Split::Test, .. }) => Err(Error::TestSplit { source_name: name.into() }),
            found => Ok(found),
        }
    }

    /// Finds the data set `NAME` or `NAME:SPLIT` for evaluation. The default is the test split, or the validation split
    /// if the data set has no test split. `None` if no data set has this name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSource`] for a split that the data set does not have.
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

    /// Returns the path of the file in the hub's cache, after downloading it if it is missing there.
    ///
    /// # Errors
    ///
    /// [`Error::Hub`].
    pub fn fetch(&self, hub: &HubConfig, progress: &mut dyn Progress) -> Result<PathBuf> {
        Ok(fetch_data_file(self.repository, self.file, hub, progress)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_splits_are_for_evaluation_only() {
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
