//! A data set: images in a fixed order, perhaps with labels; the row order of the memory bank.
//!
//! Legend: N images, C classes.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use image::RgbImage;

use super::{DataFormat, ImageSource};
use crate::error::{Error, Result};

/// One split of a data set. Index = bank row, always; cheap to clone, shared by threads.
#[derive(Clone)]
pub struct Dataset {
    format: DataFormat,
    source: Arc<dyn ImageSource>,
    labels: Option<Arc<[u32]>>,
    classes: Arc<[String]>,
    /// Ascending, distinct, `< N`.
    quarantined: Arc<[u32]>,
}

/// What a path holds: images to train on and, where there are any, images to test on.
#[derive(Clone, Debug)]
pub struct Splits {
    /// The images that get bank rows.
    pub train: Dataset,
    /// Images for testing features; its labels, if any, count the classes as `train`'s do.
    pub test: Option<Dataset>,
    /// The layout that was detected or forced.
    pub format: DataFormat,
    /// What was opened.
    pub root: PathBuf,
    /// What a person should know about how the data was read, one line each ("val/ is used, test/ is not").
    pub notes: Vec<String>,
}

impl Dataset {
    /// A data set without labels.
    ///
    /// # Errors
    /// If `source` holds no image, or more than a `u32` can count.
    pub fn unlabelled(format: DataFormat, source: Arc<dyn ImageSource>) -> Result<Self> {
        Self::checked(format, source, None, Vec::new())
    }

    /// A data set with `labels` `[N]`, each an index into `classes` `[C]`.
    ///
    /// # Errors
    /// If there is no image, or the labels disagree with the images or the classes.
    pub fn labelled(
        format: DataFormat,
        source: Arc<dyn ImageSource>,
        labels: Vec<u32>,
        classes: Vec<String>,
    ) -> Result<Self> {
        Self::checked(format, source, Some(labels), classes)
    }

    fn checked(
        format: DataFormat,
        source: Arc<dyn ImageSource>,
        labels: Option<Vec<u32>>,
        classes: Vec<String>,
    ) -> Result<Self> {
        let bad =
            |reason: String| Error::Data { path: PathBuf::from(format.to_string()), reason, hint: None };
        let n = source.len();
        if n == 0 {
            return Err(bad("there is no image".into()));
        }
        if u32::try_from(n).is_err() {
            return Err(bad(format!("{n} images are more than the {} that can be numbered", u32::MAX)));
        }
        if let Some(labels) = &labels {
            if labels.len() != n {
                return Err(bad(format!("{} labels for {n} images", labels.len())));
            }
            if let Some((i, &label)) = labels.iter().enumerate().find(|&(_, &l)| l as usize >= classes.len())
            {
                let name = source.name(i);
                return Err(bad(format!(
                    "{name} has label {label}, but there are {} classes",
                    classes.len()
                )));
            }
        }
        Ok(Dataset {
            format,
            source,
            labels: labels.map(Into::into),
            classes: classes.into(),
            quarantined: Arc::new([]),
        })
    }

    /// Number of images N, quarantined ones included: the number of bank rows.
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// Always false: an empty data set cannot be made.
    pub fn is_empty(&self) -> bool {
        self.source.is_empty()
    }

    /// The layout the images came from.
    pub fn format(&self) -> DataFormat {
        self.format
    }

    /// Where the images come from.
    pub fn source(&self) -> &Arc<dyn ImageSource> {
        &self.source
    }

    /// The labels `[N]`, each `< n_classes()`; `None` for a data set without labels.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    /// The label of image `index`, if the data set has labels.
    ///
    /// # Panics
    /// If `index >= len()`.
    pub fn label(&self, index: usize) -> Option<u32> {
        assert!(index < self.len(), "image {index} of {}", self.len());
        self.labels.as_ref().map(|labels| labels[index])
    }

    /// The class names `[C]`; empty without labels.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Number of classes C; 0 without labels.
    pub fn n_classes(&self) -> usize {
        self.classes.len()
    }

    /// The name of class `label`, if there is such a class.
    pub fn class_name(&self, label: u32) -> Option<&str> {
        self.classes.get(label as usize).map(String::as_str)
    }

    /// What a person would call image `index`.
    pub fn name(&self, index: usize) -> Cow<'_, str> {
        self.source.name(index)
    }

    /// Decodes image `index`.
    ///
    /// # Errors
    /// If it cannot be read; the error names it.
    pub fn load(&self, index: usize) -> Result<RgbImage> {
        self.source.load(index)
    }

    /// The same data set in which the images of `indices` keep their rows but never enter a batch.
    ///
    /// # Errors
    /// If an index is out of range, or no image would be left.
    pub fn with_quarantine(&self, indices: &[u32]) -> Result<Self> {
        let mut sorted = indices.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let bad =
            |reason: String| Error::Data { path: PathBuf::from(self.format.to_string()), reason, hint: None };
        if let Some(&last) = sorted.last().filter(|&&last| last as usize >= self.len()) {
            return Err(bad(format!("image {last} is quarantined, but there are {} images", self.len())));
        }
        if sorted.len() == self.len() {
            return Err(bad(format!("all {} images are quarantined", self.len())));
        }
        Ok(Dataset { quarantined: sorted.into(), ..self.clone() })
    }

    /// The quarantined images, ascending.
    pub fn quarantined(&self) -> &[u32] {
        &self.quarantined
    }

    /// Whether image `index` is quarantined.
    pub fn is_quarantined(&self, index: usize) -> bool {
        u32::try_from(index).is_ok_and(|index| self.quarantined.binary_search(&index).is_ok())
    }

    /// The images that may enter a batch, ascending.
    pub fn trainable_indices(&self) -> Vec<u32> {
        let mut skip = self.quarantined.iter().copied().peekable();
        (0..self.len() as u32).filter(|&i| skip.next_if_eq(&i).is_none()).collect()
    }

    /// A name for what the data is: 64 hexadecimal digits (BLAKE3) over the layout, the number of images, what
    /// the source says identifies each (for files: relative path and size, not the time of modification, so that
    /// a copied folder is still the same data), labels and class names. The quarantine is not part of it.
    ///
    /// # Errors
    /// If the source has to be read for this and cannot be.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"lemniscate data 1\0");
        hasher.update(self.format.to_string().as_bytes());
        hasher.update(&[0]);
        hasher.update(&(self.len() as u64).to_le_bytes());
        self.source.identify(&mut hasher)?;
        match &self.labels {
            None => hasher.update(&[0]),
            Some(labels) => {
                hasher.update(&[1]);
                let bytes: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
                hasher.update(&bytes)
            }
        };
        for class in self.classes.iter() {
            hasher.update(&(class.len() as u64).to_le_bytes());
            hasher.update(class.as_bytes());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The same images with labels that count the classes as `reference` does, matched by class name.
    ///
    /// # Errors
    /// If an image has a class that `reference` does not know; `path` is where the images came from.
    pub fn aligned_with(&self, reference: &Dataset, path: &std::path::Path) -> Result<Self> {
        let Some(labels) = &self.labels else { return Ok(self.clone()) };
        let known: std::collections::HashMap<&str, u32> =
            reference.classes.iter().map(String::as_str).zip(0..).collect();
        let map: Vec<Option<u32>> =
            self.classes.iter().map(|name| known.get(name.as_str()).copied()).collect();
        let labels = labels
            .iter()
            .enumerate()
            .map(|(i, &label)| {
                map[label as usize].ok_or_else(|| Error::Data {
                    path: path.to_owned(),
                    reason: format!(
                        "{} has class {:?}, which is not a class of the training images",
                        self.name(i),
                        self.classes[label as usize]
                    ),
                    hint: Some("the test images' classes are matched to the training images' by name".into()),
                })
            })
            .collect::<Result<Vec<u32>>>()?;
        Ok(Dataset { labels: Some(labels.into()), classes: reference.classes.clone(), ..self.clone() })
    }

    /// The same images without their labels.
    pub fn without_labels(&self) -> Self {
        Dataset { labels: None, classes: Arc::new([]), ..self.clone() }
    }
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataset")
            .field("format", &self.format)
            .field("len", &self.len())
            .field("classes", &self.n_classes())
            .field("quarantined", &self.quarantined.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Grey(usize, u8);

    impl ImageSource for Grey {
        fn len(&self) -> usize {
            self.0
        }
        fn load(&self, index: usize) -> Result<RgbImage> {
            Ok(RgbImage::from_pixel(2, 3, image::Rgb([index as u8, self.1, 0])))
        }
        fn name(&self, index: usize) -> Cow<'_, str> {
            format!("grey{}#{index}", self.1).into()
        }
    }

    fn classes(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.into()).collect()
    }

    fn labelled(labels: &[u32], names: &[&str]) -> Result<Dataset> {
        let source = Arc::new(Grey(3, 0));
        Dataset::labelled(DataFormat::Folder, source, labels.to_vec(), classes(names))
    }

    #[test]
    fn labels_must_fit_images_and_classes() {
        assert!(labelled(&[0, 1, 1], &["a", "b"]).is_ok());
        assert!(labelled(&[0, 1], &["a", "b"]).is_err());
        assert!(labelled(&[0, 1, 2], &["a", "b"]).is_err());
        assert!(Dataset::unlabelled(DataFormat::Flat, Arc::new(Grey(0, 0))).is_err());
    }

    #[test]
    fn quarantined_images_keep_their_rows() {
        let data = labelled(&[0, 1, 1], &["a", "b"]).unwrap();
        let sick = data.with_quarantine(&[1, 1]).unwrap();
        assert_eq!(sick.len(), 3);
        assert_eq!(sick.trainable_indices(), [0, 2]);
        assert_eq!(sick.quarantined(), [1]);
        assert!(sick.is_quarantined(1) && !sick.is_quarantined(2));
        assert_eq!(sick.label(2), Some(1));
        assert_eq!(sick.name(2), data.name(2));
        assert_eq!(sick.fingerprint().unwrap(), data.fingerprint().unwrap());
        assert!(data.with_quarantine(&[3]).is_err());
        assert!(data.with_quarantine(&[0, 1, 2]).is_err());
    }

    #[test]
    fn the_fingerprint_sees_names_labels_classes_and_format() {
        let prints: Vec<String> = [
            labelled(&[0, 1, 1], &["a", "b"]),
            labelled(&[0, 1, 0], &["a", "b"]),
            labelled(&[0, 1, 1], &["a", "c"]),
            Dataset::unlabelled(DataFormat::Folder, Arc::new(Grey(3, 0))),
            Dataset::unlabelled(DataFormat::Flat, Arc::new(Grey(3, 0))),
            Dataset::unlabelled(DataFormat::Flat, Arc::new(Grey(3, 1))),
            Dataset::unlabelled(DataFormat::Flat, Arc::new(Grey(2, 0))),
        ]
        .map(|data| data.unwrap().fingerprint().unwrap())
        .into();
        for (i, print) in prints.iter().enumerate() {
            assert_eq!(print.len(), 64);
            assert!(!prints[..i].contains(print), "data sets {i} and an earlier one have the same print");
        }
        assert_eq!(prints[0], labelled(&[0, 1, 1], &["a", "b"]).unwrap().fingerprint().unwrap());
    }

    #[test]
    fn test_classes_are_matched_by_name() {
        let train = labelled(&[0, 1, 2], &["a", "b", "c"]).unwrap();
        let test = labelled(&[0, 1, 1], &["c", "a"]).unwrap();
        let aligned = test.aligned_with(&train, "t".as_ref()).unwrap();
        assert_eq!(aligned.labels().unwrap(), [2, 0, 0]);
        assert_eq!(aligned.classes(), train.classes());

        // A class without images does no harm; one with images cannot be scored.
        let harmless = labelled(&[0, 1, 1], &["c", "a", "z"]).unwrap();
        assert!(harmless.aligned_with(&train, "t".as_ref()).is_ok());
        let strange = labelled(&[0, 2, 1], &["c", "a", "z"]).unwrap();
        let error = strange.aligned_with(&train, "t".as_ref()).unwrap_err().to_string();
        assert!(error.contains("\"z\"") && error.contains("grey0#1"), "{error}");
    }
}
