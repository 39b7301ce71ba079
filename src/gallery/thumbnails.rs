//! The images of a page: inside it, or as files beside it that are loaded when they come into view.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::page::{data_uri, thumbnail_jpeg};

/// Long side of a thumbnail in pixels: one and a half times its size on the page, for screens with small pixels.
const SIDE: u32 = 96;

/// Tiles up to which a page keeps its images inside by default: some megabytes.
const TILES_INSIDE: usize = 3_000;

/// Where a page's images are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Inside small pages, beside large ones.
    #[default]
    Auto,
    /// In the page itself: one file to send on.
    Inside,
    /// In a folder `PAGE_files` beside the page.
    Beside,
}

/// Which of a page's data sets an image is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Split {
    /// The training images.
    Train,
    /// The queries, where those are others.
    Query,
}

/// The `src` of each image of a page.
pub struct Thumbnails(HashMap<(Split, u32), String>);

impl Thumbnails {
    /// Makes the thumbnails of the images that a page's tiles show, each once however often it is shown. `train` and
    /// `queries` are where they are from, `page` is the file that the page will be. `progress` hears how many are made,
    /// from any thread.
    ///
    /// # Errors
    /// An image that cannot be read, or a file that cannot be written.
    pub fn make(
        tiles: &[(Split, u32)],
        [train, queries]: [&Dataset; 2],
        place: Place,
        page: &Path,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self> {
        let beside = match place {
            Place::Auto => tiles.len() > TILES_INSIDE,
            Place::Inside => false,
            Place::Beside => true,
        };
        let folder = beside.then(|| Folder::create(page)).transpose()?;
        let mut wanted = tiles.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        let done = AtomicUsize::new(0);
        let sources = wanted.into_par_iter().map(|(split, index)| {
            let data = if split == Split::Train { train } else { queries };
            let bytes = thumbnail_jpeg(&data.load(index as usize)?, SIDE);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            let src = match &folder {
                None => data_uri("image/jpeg", &bytes),
                Some(folder) => folder.write(split, index, &bytes)?,
            };
            Ok(((split, index), src))
        });
        Ok(Thumbnails(sources.collect::<Result<_>>()?))
    }

    /// The `src` of an image that is among the tiles.
    ///
    /// # Panics
    /// If it is not.
    pub fn src(&self, split: Split, index: u32) -> &str {
        &self.0[&(split, index)]
    }
}

/// The folder beside a page.
struct Folder {
    path: PathBuf,
    /// Its name as it stands in a URL.
    url: String,
}

impl Folder {
    /// Makes the folder, or empties it of an earlier page's thumbnails.
    fn create(page: &Path) -> Result<Self> {
        let mut name = page.file_stem().unwrap_or_default().to_owned();
        name.push("_files");
        let path = page.with_file_name(&name);
        std::fs::create_dir_all(&path)
            .map_err(|e| Error::io(&path, "create the folder of the page's images", e))?;
        let entries = std::fs::read_dir(&path).map_err(|e| Error::io(&path, "read the folder", e))?;
        for entry in entries.flatten() {
            if is_thumbnail(&entry.file_name().to_string_lossy()) {
                let file = entry.path();
                std::fs::remove_file(&file)
                    .map_err(|e| Error::io(&file, "remove an earlier page's image", e))?;
            }
        }
        Ok(Folder { url: url_encoded(&name.to_string_lossy()), path })
    }

    fn write(&self, split: Split, index: u32, bytes: &[u8]) -> Result<String> {
        let name = format!("{}{index}.jpg", if split == Split::Train { 't' } else { 'q' });
        let file = self.path.join(&name);
        std::fs::write(&file, bytes).map_err(|e| Error::io(&file, "write", e))?;
        Ok(format!("{}/{name}", self.url))
    }
}

/// Whether a file has a name that [`Folder::write`] gives.
fn is_thumbnail(name: &str) -> bool {
    let number = name.strip_suffix(".jpg").and_then(|name| name.strip_prefix(['t', 'q']));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A file's name as a relative URL.
fn url_encoded(name: &str) -> String {
    let mut url = String::from("./");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url += &format!("%{byte:02X}");
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::detect::{self, OpenOptions};

    #[test]
    fn images_are_inside_or_beside_and_an_earlier_pages_are_gone() {
        let splits = detect::open("synthetic:16x16".as_ref(), None, &OpenOptions::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("a page#1.html");
        let data = [&splits.train, splits.test.as_ref().unwrap()];
        let make =
            |tiles: &[(Split, u32)], place| Thumbnails::make(tiles, data, place, &page, &|_| {}).unwrap();
        let tiles = [(Split::Train, 3), (Split::Query, 0), (Split::Train, 3)];
        let inside = make(&tiles, Place::Auto);
        assert!(inside.src(Split::Train, 3).starts_with("data:image/jpeg;base64,"));
        let files = folder.path().join("a page#1_files");
        assert!(!files.exists());
        let beside = make(&tiles, Place::Beside);
        assert_eq!(beside.src(Split::Query, 0), "./a%20page%231_files/q0.jpg");
        std::fs::write(files.join("notes.jpg"), "mine").unwrap();
        make(&[(Split::Train, 5)], Place::Beside);
        let mut names: Vec<_> = std::fs::read_dir(&files).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["notes.jpg", "t5.jpg"]);
        assert!(!is_thumbnail("t.jpg") && !is_thumbnail("x1.jpg") && is_thumbnail("q10.jpg"));
    }
}
