//! Images that are files: a million paths in one piece of memory, and reading them.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use image::RgbImage;
use rayon::prelude::*;

use super::{ImageSource, Pixels, decode, owned};
use crate::error::{Error, Result};

/// Paths relative to a root, grouped by folder, in the order of the bank's rows.
///
/// Names stand end to end in one buffer: 1.3 million files take about 40 MB. Paths are bytes, so names that are
/// not UTF-8 work; they are shown with replacement characters.
#[derive(Debug)]
pub struct FileList {
    root: PathBuf,
    dirs: Vec<Dir>,
    names: Vec<u8>,
    /// End of each file's name in `names`.
    ends: Vec<u64>,
    /// A bit for each file: whether it was decoded whole.
    decoded: Vec<AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Dir {
    /// Relative to the root; empty for the root itself.
    path: Box<[u8]>,
    /// Index of its first file.
    first: u32,
}

impl FileList {
    /// An empty list of files under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        FileList {
            root: root.into(),
            dirs: Vec::new(),
            names: Vec::new(),
            ends: Vec::new(),
            decoded: Vec::new(),
        }
    }

    /// Begins a folder; files pushed from now on are in it.
    pub fn push_dir(&mut self, path: &[u8]) {
        self.dirs.push(Dir { path: path.into(), first: self.ends.len() as u32 });
    }

    /// Adds a file to the last folder pushed (to the root if there is none).
    ///
    /// # Errors
    /// If there are more files than a `u32` can number.
    pub fn push(&mut self, name: &[u8]) -> Result<()> {
        if self.dirs.is_empty() {
            self.push_dir(b"");
        }
        if self.ends.len() >= u32::MAX as usize {
            let reason = format!("there are more than {} images", u32::MAX);
            return Err(Error::Data { path: self.root.clone(), reason, hint: None });
        }
        if self.ends.len() / 64 == self.decoded.len() {
            self.decoded.push(AtomicU64::new(0));
        }
        self.names.extend_from_slice(name);
        self.ends.push(self.names.len() as u64);
        Ok(())
    }

    /// What the paths are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of file `index` relative to the root.
    ///
    /// # Panics
    /// If `index >= len()`.
    pub fn relative(&self, index: usize) -> Vec<u8> {
        // Empty folders share `first` with the next one that is not; the last is the one that holds the file.
        let dir = &self.dirs[self.dirs.partition_point(|dir| dir.first as usize <= index) - 1];
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        let name = &self.names[start..self.ends[index] as usize];
        let mut path = Vec::with_capacity(dir.path.len() + 1 + name.len());
        path.extend_from_slice(&dir.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// Where file `index` is.
    ///
    /// # Panics
    /// If `index >= len()`.
    pub fn path(&self, index: usize) -> PathBuf {
        self.root.join(OsStr::from_bytes(&self.relative(index)))
    }

    fn read(&self, index: usize) -> Result<Vec<u8>> {
        decode::read_file(&self.path(index), &self.name(index))
    }

    /// Decodes `bytes`, what file `index` holds, and remembers that they could be decoded.
    fn decode_whole(&self, index: usize, bytes: &[u8]) -> Result<RgbImage> {
        let image = decode::decode_bytes(bytes, &self.name(index))?;
        self.decoded[index / 64].fetch_or(1 << (index % 64), Ordering::Relaxed);
        Ok(image)
    }
}

impl ImageSource for FileList {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn load(&self, index: usize) -> Result<RgbImage> {
        self.decode_whole(index, &self.read(index)?)
    }

    /// Whole the first time, so that damage shows in the first pass, wherever in the picture it is.
    fn load_rows(&self, index: usize, rows: &mut dyn FnMut(u32, u32) -> u32) -> Result<Pixels<'_>> {
        if self.decoded[index / 64].load(Ordering::Relaxed) >> (index % 64) & 1 == 1 {
            return decode::decode_rows(self.read(index)?.into(), &self.name(index), rows).map(owned);
        }
        let image = self.load(index)?;
        rows(image.width(), image.height());
        Ok(owned(image))
    }

    fn name(&self, index: usize) -> Cow<'_, str> {
        match String::from_utf8(self.relative(index)) {
            Ok(name) => name.into(),
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned().into(),
        }
    }

    fn encoded(&self, index: usize) -> Result<Option<Vec<u8>>> {
        self.read(index).map(Some)
    }

    fn content_hash(&self, index: usize) -> Result<[u8; 32]> {
        Ok(blake3::hash(&self.read(index)?).into())
    }

    fn load_hashed(&self, index: usize) -> Result<(RgbImage, [u8; 32])> {
        let bytes = self.read(index)?;
        Ok((self.decode_whole(index, &bytes)?, blake3::hash(&bytes).into()))
    }

    /// Relative paths and sizes. A file that is not there has no size; that shows, too.
    fn identify(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        const CHUNK: usize = 4096;
        let chunks: Vec<Vec<u8>> = (0..self.len().div_ceil(CHUNK))
            .into_par_iter()
            .map(|chunk| {
                let mut bytes = Vec::with_capacity(CHUNK * 48);
                for index in chunk * CHUNK..self.len().min((chunk + 1) * CHUNK) {
                    let relative = self.relative(index);
                    let path = self.root.join(OsStr::from_bytes(&relative));
                    let size = std::fs::metadata(path).map_or(u64::MAX, |metadata| metadata.len());
                    bytes.extend((relative.len() as u64).to_le_bytes());
                    bytes.extend(relative);
                    bytes.extend(size.to_le_bytes());
                }
                bytes
            })
            .collect();
        for chunk in &chunks {
            hasher.update(chunk);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_folders_do_not_shift_names() {
        let mut list = FileList::new("/data");
        list.push_dir(b"");
        list.push_dir(b"a");
        list.push(b"1.png").unwrap();
        list.push_dir(b"a/empty");
        list.push_dir(b"b");
        list.push(b"2.png").unwrap();
        list.push(b"").unwrap();
        list.push(b"\xFF.png").unwrap();
        list.push_dir(b"c");
        assert_eq!(list.len(), 4);
        assert_eq!(
            (0..4).map(|i| list.name(i).into_owned()).collect::<Vec<_>>(),
            ["a/1.png", "b/2.png", "b/", "b/\u{FFFD}.png"]
        );
        assert_eq!(list.path(3).as_os_str().as_bytes(), b"/data/b/\xFF.png");
    }

    #[test]
    fn what_a_view_does_not_show_is_decoded_once() {
        use crate::data::augment::{Scratch, TrainTransform};
        use crate::data::loader::View;
        use crate::rng::Purpose;
        use jpeg_encoder::{ColorType, Encoder};

        let folder = tempfile::tempdir().unwrap();
        let pixels: Vec<u8> =
            (0..64 * 256 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut bytes = Vec::new();
        Encoder::new(&mut bytes, 90).encode(&pixels, 64, 256, ColorType::Rgb).unwrap();
        std::fs::write(folder.path().join("good.jpg"), &bytes).unwrap();
        // A marker that means nothing, near the end of the picture.
        let at = bytes.len() - 200;
        bytes[at..at + 2].copy_from_slice(&[0xFF, 0x02]);
        std::fs::write(folder.path().join("damaged.jpg"), &bytes).unwrap();
        let mut list = FileList::new(folder.path());
        list.push(b"good.jpg").unwrap();
        list.push(b"damaged.jpg").unwrap();

        let mut heights = (0..3).map(|_| list.load_rows(0, &mut |_, _| 20).unwrap().height());
        assert_eq!([(); 3].map(|()| heights.next().unwrap()), [256, 24, 24]);
        for _ in 0..2 {
            assert!(list.load_rows(1, &mut |_, _| 20).is_err(), "damage below what is needed");
        }
        let whole = list.load(0).unwrap();
        let (mut made, mut expected) = (vec![0; 32 * 32 * 3], vec![0; 32 * 32 * 3]);
        for epoch in 0..20 {
            let transform = TrainTransform::imagenet(32);
            let view = View::Train { transform, seed: 3, epoch, purpose: Purpose::Augmentation };
            let scratch = &mut Scratch::default();
            view.make(&list, 0, scratch, &mut made).unwrap();
            view.apply(0, &whole, scratch, &mut expected);
            assert_eq!(made, expected, "epoch {epoch}");
        }
    }

    #[test]
    fn absolute_names_leave_the_root() {
        let mut list = FileList::new("/data");
        list.push(b"/elsewhere/x.png").unwrap();
        assert_eq!(list.path(0), Path::new("/elsewhere/x.png"));
    }
}
