//! The report's files in the output folder: JSON and HTML.

use std::path::Path;

use model_format::staging::Staging;

use super::{page::page, summary::Report};
use crate::{
    error::{Error, Result},
    output::folder::{LAYOUT, REPORT_FILES},
};

impl Report {
    /// Reads the report in `folder`; `None` if it has none.
    pub fn read(folder: &Path) -> Result<Option<Report>> {
        let path = folder.join(REPORT_FILES[0]);
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(model_format::Error::Io { action: "read", path, source }.into()),
        };
        let report = serde_json::from_slice(&content).map_err(|error| {
            let file = path.display().to_string();
            Error::Format(model_format::Error::Malformed { file, reason: error.to_string() })
        });
        report.map(Some)
    }

    /// The files of the report, by name.
    pub fn files(&self) -> [(&'static str, Vec<u8>); 2] {
        let mut json = serde_json::to_vec_pretty(self).expect("a report serializes");
        json.push(b'\n');
        let [json_name, page_name] = REPORT_FILES;
        [(json_name, json), (page_name, page(self).into_bytes())]
    }

    /// Replaces the report in `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut staging = Staging::new(folder, LAYOUT)?;
        for (name, content) in self.files() {
            staging.write(name, &content)?;
        }
        Ok(staging.commit(|_| false, |_| false)?)
    }
}
