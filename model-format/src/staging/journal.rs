//! [`Journal`]: which files of a long work are finished, so that one that was ended can be taken up again.
//!
//! A file of lines: a fingerprint of the work, then one finished file each. A line is written when its file is on the
//! disk; a half-written last line is passed over.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tensor_cache::ShardSum;

/// A file that is complete and on the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// What it will be called.
    pub name: String,
    /// Its size.
    pub nbytes: u64,
    /// Its sum.
    pub md5sum: String,
    /// What else the program notes with it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub note: Value,
}

impl Finished {
    /// Whether `path` is this file.
    pub(crate) fn is(&self, path: &Path) -> bool {
        let same_size = fs::metadata(path).is_ok_and(|metadata| metadata.len() == self.nbytes);
        same_size && sum_of_file(path).is_ok_and(|sum| sum == self.md5sum)
    }
}

/// The file that finished ones are noted in.
pub(crate) struct Journal {
    file: File,
    len: usize,
}

impl Journal {
    pub(crate) const NAME: &str = "journal";

    /// What the journal at `path` is about.
    pub(crate) fn fingerprint(path: &Path) -> Option<String> {
        fs::read_to_string(path).ok()?.lines().next().map(str::to_owned)
    }

    /// The files that a journal at `path` lists, if it is of the work with this fingerprint.
    pub(crate) fn read(path: &Path, fingerprint: &str) -> Vec<Finished> {
        let Ok(text) = fs::read_to_string(path) else { return Vec::new() };
        let mut lines = text.lines();
        if lines.next() != Some(fingerprint) {
            return Vec::new();
        }
        lines.map_while(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Writes the journal anew, with what is finished so far.
    pub(crate) fn begin(path: &Path, fingerprint: &str, finished: &[Finished]) -> std::io::Result<Journal> {
        let mut text = format!("{fingerprint}\n");
        for file in finished {
            text += &line(file);
        }
        // In one step, so that a list of finished files is not lost while it is copied.
        let beside = path.with_extension("new.tmp");
        fs::write(&beside, text)?;
        fs::rename(&beside, path)?;
        Ok(Journal { file: OpenOptions::new().append(true).open(path)?, len: finished.len() })
    }

    /// Files that are finished.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn add(&mut self, file: &Finished) -> std::io::Result<()> {
        self.file.write_all(line(file).as_bytes())?;
        self.len += 1;
        self.file.sync_data()
    }
}

fn line(file: &Finished) -> String {
    format!("{}\n", serde_json::to_string(file).expect("an entry serializes"))
}

/// The md5 of a file.
pub fn sum_of_file(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut sum = ShardSum::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sum.finish()),
            n => sum.update(&buffer[..n]),
        }
    }
}
