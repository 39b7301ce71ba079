//! Which images are asked with.

use std::path::PathBuf;
use std::sync::Arc;

use image::RgbImage;

use crate::data::dataset::{Dataset, Splits};
use crate::data::detect::DataFormat;
use crate::data::{ImageSource, decode};
use crate::error::{Error, Result};
use crate::eval::monitor::spread;
use crate::gallery::choose::shuffled;

/// What `--queries` asks for.
pub enum Request {
    /// So many of the data set's.
    Number(usize),
    /// These files.
    Files(Vec<PathBuf>),
}

impl Request {
    /// Reads the flag's values.
    ///
    /// # Errors
    /// If it is a number and something else, or zero.
    pub fn of(values: &[String]) -> Result<Self> {
        let numbers: Vec<usize> = values.iter().filter_map(|value| value.parse().ok()).collect();
        match numbers[..] {
            [] => Ok(Request::Files(values.iter().map(PathBuf::from).collect())),
            [n] if values.len() == 1 && n > 0 => Ok(Request::Number(n)),
            [_] if values.len() == 1 => Err(Error::usage("--queries must be at least 1")),
            _ => Err(Error::Usage {
                message: format!("--queries takes one number or image files, found {}", values.join(" ")),
                hint: Some("DATA comes before --queries; a file whose name is a number is ./NUMBER".into()),
            }),
        }
    }

    /// How many are shown; `None` for all.
    pub fn shown(&self) -> Option<usize> {
        match self {
            Request::Number(n) => Some(*n),
            Request::Files(_) => None,
        }
    }
}

/// The images to ask with.
pub struct Asked {
    /// Where they are from.
    pub data: Dataset,
    /// Which of them, `[Q]`.
    pub indices: Vec<u32>,
    /// Their classes, as the training images count them, `[Q]`.
    pub labels: Option<Vec<u32>>,
    /// Whether they are training images, which are not to find themselves.
    pub are_training_images: bool,
    /// What they are, in two words.
    pub what: &'static str,
}

impl Asked {
    /// Of a data set with labels at most `candidates` images, evenly spread, of which some are shown later; without
    /// labels as many as are shown, at random by `seed`. Of files all.
    ///
    /// # Errors
    /// If a file is no image.
    pub fn new(request: &Request, splits: &Splits, candidates: usize, seed: u64) -> Result<Self> {
        let n = match request {
            Request::Number(n) => *n,
            Request::Files(files) => return Self::files(files),
        };
        let data = splits.test.as_ref().unwrap_or(&splits.train).clone();
        let all = data.trainable_indices();
        let (indices, labels) = match data.labels().filter(|_| splits.train.labels().is_some()) {
            Some(labels) => {
                let indices = spread(&all, candidates);
                let labels = indices.iter().map(|&i| labels[i as usize]).collect();
                (indices, Some(labels))
            }
            None => (shuffled(all.len(), seed).into_iter().take(n).map(|i| all[i]).collect(), None),
        };
        let are_training_images = splits.test.is_none();
        let what = if are_training_images { "training images, each without itself" } else { "test images" };
        Ok(Asked { data, indices, labels, are_training_images, what })
    }

    fn files(files: &[PathBuf]) -> Result<Self> {
        // Each is decoded once now, so that the first error names what is wrong before any work is done.
        files.iter().try_for_each(|file| decode::decode_file(file).map(drop))?;
        let data = Dataset::unlabelled(DataFormat::List, Arc::new(Files(files.to_vec())))?;
        let indices = data.trainable_indices();
        Ok(Asked { data, indices, labels: None, are_training_images: false, what: "files" })
    }
}

/// Files named on the command line.
struct Files(Vec<PathBuf>);

impl ImageSource for Files {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn load(&self, index: usize) -> Result<RgbImage> {
        decode::decode_file(&self.0[index])
    }

    fn name(&self, index: usize) -> std::borrow::Cow<'_, str> {
        self.0[index].to_string_lossy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_or_files_but_not_both() {
        let of = |values: &[&str]| Request::of(&values.iter().map(|&v| v.to_owned()).collect::<Vec<_>>());
        assert!(matches!(of(&["30"]), Ok(Request::Number(30))));
        assert!(matches!(of(&["a.jpg", "./30"]), Ok(Request::Files(files)) if files.len() == 2));
        assert!(of(&["0"]).is_err() && of(&["30", "photos"]).is_err() && of(&["3", "4"]).is_err());
    }
}
