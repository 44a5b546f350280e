//! [`Journal`]: which shards of a conversion are finished, so that one that was ended can be taken up again.
//!
//! A file of lines: a fingerprint of the work, then one finished shard each. A line is written when its shard is on the
//! disk; a half-written last line is passed over.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
};

use model_format::{Checkpoint, checkpoint::file_of, tensor_cache::ShardSum};
use serde::{Deserialize, Serialize};

use crate::Plan;

/// A shard that is complete and on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finished {
    pub(crate) name: String,
    pub(crate) nbytes: u64,
    pub(crate) md5sum: String,
}

impl Finished {
    /// Whether `path` is this shard.
    pub(crate) fn is(&self, path: &Path) -> bool {
        let same_size = fs::metadata(path).is_ok_and(|metadata| metadata.len() == self.nbytes);
        same_size && sum_of_file(path).is_ok_and(|sum| sum == self.md5sum)
    }
}

/// The file that finished shards are noted in.
pub(crate) struct Journal {
    file: File,
    len: usize,
}

impl Journal {
    pub(crate) const NAME: &str = "journal";

    /// The shards that a journal at `path` lists, if it is of the work with this fingerprint.
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
        for shard in finished {
            text += &line(shard);
        }
        // In one step, so that a list of finished shards is not lost while it is copied.
        let beside = path.with_extension("new.tmp");
        fs::write(&beside, text)?;
        fs::rename(&beside, path)?;
        Ok(Journal { file: OpenOptions::new().append(true).open(path)?, len: finished.len() })
    }

    /// Shards that are finished.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn add(&mut self, shard: &Finished) -> std::io::Result<()> {
        self.file.write_all(line(shard).as_bytes())?;
        self.len += 1;
        self.file.sync_data()
    }
}

fn line(shard: &Finished) -> String {
    format!("{}\n", serde_json::to_string(shard).expect("a shard serializes"))
}

/// What must be the same for two conversions to write the same bytes: the program, the plan, and the source's files by
/// size and time.
pub(crate) fn fingerprint(checkpoint: &dyn Checkpoint, plan: &Plan, shard_size: usize, refit: bool) -> String {
    let mut sum = ShardSum::default();
    let mut add = |text: &str| {
        sum.update(&(text.len() as u64).to_le_bytes());
        sum.update(text.as_bytes());
    };
    add(env!("CARGO_PKG_VERSION"));
    add(checkpoint.config_json());
    add(&format!("{} {shard_size} {refit}", plan.format.name));
    let mut last = String::new();
    for info in checkpoint.tensors() {
        add(&format!("{} {} {:?} {}", info.name, info.dtype, info.shape, info.file));
        let file = file_of(checkpoint, &info.name);
        if file != last {
            if let Ok(metadata) = fs::metadata(&file) {
                add(&format!("{file} {} {:?}", metadata.len(), metadata.modified().ok()));
            }
            last = file;
        }
    }
    format!("weight-convert {}", sum.finish())
}

/// The md5 of a file.
pub(crate) fn sum_of_file(path: &Path) -> std::io::Result<String> {
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
