//! [`Journal`]: lists the finished files of a long run, so that a later process can resume it.
//!
//! The journal is a text file. The first line is the fingerprint of the run. Each further line is a finished file,
//! written after that file is synced. A truncated last line is ignored.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tensor_cache::ShardSum;

/// A file that is complete and synced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Final name.
    pub name: String,
    /// Size in bytes.
    pub nbytes: u64,
    /// md5 of the content, in hexadecimal.
    pub md5sum: String,
    /// Additional data of the program.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub note: Value,
}

impl Finished {
    /// True if the file at `path` has this size and checksum.
    pub(crate) fn matches(&self, path: &Path) -> bool {
        let same_size = fs::metadata(path).is_ok_and(|metadata| metadata.len() == self.nbytes);
        same_size && sum_of_file(path).is_ok_and(|sum| sum == self.md5sum)
    }
}

/// The open journal of a run.
pub(crate) struct Journal {
    file: File,
    len: usize,
}

impl Journal {
    pub(crate) const NAME: &str = "journal";

    /// The fingerprint in the journal at `path`, if one exists.
    pub(crate) fn fingerprint(path: &Path) -> Option<String> {
        fs::read_to_string(path).ok()?.lines().next().map(str::to_owned)
    }

    /// The files in the journal at `path`. Empty if it is missing or has another fingerprint.
    pub(crate) fn read(path: &Path, fingerprint: &str) -> Vec<Finished> {
        let Ok(text) = fs::read_to_string(path) else { return Vec::new() };
        let mut lines = text.lines();
        if lines.next() != Some(fingerprint) {
            return Vec::new();
        }
        lines.map_while(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Writes a new journal with the files finished so far, and opens it.
    pub(crate) fn begin(path: &Path, fingerprint: &str, finished: &[Finished]) -> std::io::Result<Journal> {
        let mut text = format!("{fingerprint}\n");
        for file in finished {
            text += &line(file);
        }
        // Replace the old journal atomically, so that its list is not lost if the process ends here.
        let beside = path.with_extension("new.tmp");
        fs::write(&beside, text)?;
        fs::rename(&beside, path)?;
        Ok(Journal { file: OpenOptions::new().append(true).open(path)?, len: finished.len() })
    }

    /// Number of finished files.
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

/// The md5 of a file, in hexadecimal.
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
