//! `cargo xtask figures`: the pictures of the documents, drawn from `benches/results/*.json`.
//!
//! A picture shows what its data file says and nothing else, so that a figure in a picture has one home. A test compares
//! the committed pictures with the data.

mod bars;
mod data;
mod stages;
mod svg;
mod terminal;

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// One picture: its name in `docs/figures/`, its data in `benches/results/`, and how it is drawn.
struct Figure {
    picture: &'static str,
    data: &'static str,
    draw: fn(&str) -> Result<String>,
}

const FIGURES: &[Figure] = &[
    Figure { picture: "overview.svg", data: "overview.json", draw: stages::draw },
    Figure { picture: "perplexity.svg", data: "perplexity.json", draw: bars::draw },
    Figure { picture: "speed.svg", data: "speed.json", draw: bars::draw },
    Figure { picture: "bandwidth.svg", data: "bandwidth.json", draw: bars::draw },
    Figure { picture: "chat.svg", data: "chat.cast", draw: terminal::draw },
];

/// Screenshots of the page, which `cargo xtask pictures` makes.
#[cfg(test)]
const SCREENSHOTS: [&str; 3] = ["page-dark.webp", "page-phone.webp", "page-wide.webp"];

const PICTURES: &str = "docs/figures";
const RESULTS: &str = "benches/results";

/// Draws every picture anew.
pub fn run(root: &Path) -> Result<()> {
    for figure in FIGURES {
        let path = root.join(PICTURES).join(figure.picture);
        fs::write(&path, figure.svg(root)?).with_context(|| format!("cannot write `{}`", path.display()))?;
        println!("wrote {PICTURES}/{} from {RESULTS}/{}", figure.picture, figure.data);
    }
    Ok(())
}

impl Figure {
    fn svg(&self, root: &Path) -> Result<String> {
        let path = format!("{RESULTS}/{}", self.data);
        let text = fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read `{path}`"))?;
        (self.draw)(&text).with_context(|| format!("cannot draw `{path}`"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    #[test]
    fn committed_pictures_are_what_the_data_gives() {
        for figure in FIGURES {
            let committed = fs::read_to_string(root().join(PICTURES).join(figure.picture)).unwrap();
            assert!(
                committed == figure.svg(root()).unwrap(),
                "{}: {} has changed; run `cargo xtask figures`",
                figure.picture,
                figure.data
            );
        }
    }

    #[test]
    fn every_result_and_every_picture_is_used() {
        let names = |folder: &str| -> BTreeSet<String> {
            let entries = fs::read_dir(root().join(folder)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let pictures = FIGURES.iter().map(|figure| figure.picture).chain(SCREENSHOTS);
        assert_eq!(names(PICTURES), pictures.map(str::to_string).collect());
        assert_eq!(names(RESULTS), FIGURES.iter().map(|figure| figure.data.to_string()).collect());
    }
}
