//! Looking at every image of a data set: what is there, what is there twice, and what cannot be read.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use serde::Serialize;

use super::dataset::Dataset;
use super::watch::{Wait, Watch, hangs};
use crate::error::{Error, Result};

/// What a scan found.
#[derive(Clone, Debug, Serialize)]
pub struct ScanReport {
    /// Number of images, unreadable ones included.
    pub images: usize,
    /// Images by class, in the order of the labels; empty without labels.
    pub classes: Vec<ClassCount>,
    /// Widths in pixels of the readable images, if there are any.
    pub width: Option<Spread>,
    /// Heights in pixels.
    pub height: Option<Spread>,
    /// Sizes in pixels and how many images have each, the most frequent first.
    pub sizes: Vec<SizeCount>,
    /// Groups of two or more images with the same content (file bytes, or pixels where there are no files), each
    /// in order, the groups in the order of their first images.
    pub duplicates: Vec<Vec<ImageRef>>,
    /// How many of those groups hold images of different classes.
    pub duplicates_across_classes: usize,
    /// Images that cannot be decoded, in order.
    pub unreadable: Vec<Unreadable>,
}

/// How many images a class has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// The class's name.
    pub name: String,
    /// Its images, unreadable ones included.
    pub images: usize,
}

/// How many images have a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SizeCount {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Readable images of that size.
    pub images: usize,
}

/// Smallest, middle and largest of some lengths in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: u32,
    /// The middle one; of an even number the upper of the two.
    pub median: u32,
    /// The largest.
    pub max: u32,
}

/// An image, by number and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageRef {
    /// Its index, which is its bank row.
    pub index: u32,
    /// What a person would call it.
    pub name: String,
}

/// An image that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Its index, which is its bank row.
    pub index: u32,
    /// What a person would call it.
    pub name: String,
    /// Why it cannot be decoded.
    pub reason: String,
}

/// Decodes every image of `dataset` on `threads` threads (0: as many as there are cores). `progress` hears the number
/// of images done so far; the report depends on neither. One image may take `read_timeout`.
///
/// # Errors
/// If a thread cannot be started or dies, or an image's file system hangs: [`Error::Slow`]. What is wrong with an image
/// is in the report.
pub fn scan(
    dataset: &Dataset,
    progress: &dyn Fn(usize),
    threads: usize,
    read_timeout: Duration,
) -> Result<ScanReport> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads == 0 { cores() } else { threads }.min(dataset.len());
    let watch = Arc::new(Watch::new(threads, read_timeout));
    let next = Arc::new(AtomicUsize::new(0));
    let (send, receive) = channel();
    // Threads of their own, and not joined: one that hangs must not keep the others, nor the caller.
    for number in 0..threads {
        let (dataset, watch, next, send) =
            (dataset.clone(), Arc::clone(&watch), Arc::clone(&next), send.clone());
        let work = move || {
            while let Some(index) = claim(&next, dataset.len()) {
                let reading = watch.reading(number, index);
                let found = examine(&dataset, index);
                drop(reading);
                // Nobody listens any longer once the caller has given up.
                if send.send((index, found)).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name(format!("scan-{number}"));
        thread.spawn(work).map_err(|source| Error::io(".", "start a thread that scans", source))?;
    }
    drop(send);

    let mut found: Vec<Option<Examined>> = Vec::new();
    found.resize_with(dataset.len(), || None);
    let mut wait = Wait::new(&watch);
    for done in 1..=dataset.len() {
        let (index, examined) = loop {
            match receive.recv_timeout(wait.step()) {
                Ok(one) => break one,
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Worker { worker: "scan" }),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(index) = wait.overdue() {
                        return Err(hangs(&dataset.name(index as usize), read_timeout));
                    }
                }
            }
        };
        wait = Wait::new(&watch);
        found[index as usize] = Some(examined);
        progress(done);
    }
    Ok(summarise(dataset, found.into_iter().flatten().collect()))
}

/// The next image that nobody looks at, if there is one.
fn claim(next: &AtomicUsize, images: usize) -> Option<u32> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    (index < images).then_some(index as u32)
}

fn examine(dataset: &Dataset, index: u32) -> Examined {
    match dataset.source().load_hashed(index as usize) {
        Ok((image, hash)) => Ok((image.width(), image.height(), hash)),
        Err(error) => {
            let reason = match error {
                Error::Image { reason, .. } => reason,
                other => other.to_string(),
            };
            Err(Unreadable { index, name: dataset.name(index as usize).into_owned(), reason })
        }
    }
}

type Examined = std::result::Result<(u32, u32, [u8; 32]), Unreadable>;

fn summarise(dataset: &Dataset, found: Vec<Examined>) -> ScanReport {
    let mut sizes: HashMap<(u32, u32), usize> = HashMap::new();
    let mut by_hash: HashMap<[u8; 32], Vec<u32>> = HashMap::new();
    let (mut widths, mut heights, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
    for (index, found) in (0u32..).zip(found) {
        match found {
            Ok((width, height, hash)) => {
                *sizes.entry((width, height)).or_default() += 1;
                by_hash.entry(hash).or_default().push(index);
                widths.push(width);
                heights.push(height);
            }
            Err(image) => unreadable.push(image),
        }
    }
    let mut groups: Vec<Vec<u32>> = by_hash.into_values().filter(|group| group.len() > 1).collect();
    groups.sort_unstable();
    let label = |index: u32| dataset.label(index as usize);
    let across = groups.iter().filter(|group| group.iter().any(|&i| label(i) != label(group[0]))).count();
    let named = |&index: &u32| ImageRef { index, name: dataset.name(index as usize).into_owned() };
    let mut sizes: Vec<SizeCount> =
        sizes.into_iter().map(|((width, height), images)| SizeCount { width, height, images }).collect();
    sizes.sort_unstable_by_key(|size| (std::cmp::Reverse(size.images), size.width, size.height));

    let mut classes: Vec<ClassCount> =
        dataset.classes().iter().map(|name| ClassCount { name: name.clone(), images: 0 }).collect();
    for &label in dataset.labels().unwrap_or_default() {
        classes[label as usize].images += 1;
    }
    ScanReport {
        images: dataset.len(),
        classes,
        width: spread(widths),
        height: spread(heights),
        sizes,
        duplicates: groups.iter().map(|group| group.iter().map(named).collect()).collect(),
        duplicates_across_classes: across,
        unreadable,
    }
}

fn spread(mut lengths: Vec<u32>) -> Option<Spread> {
    lengths.sort_unstable();
    Some(Spread { min: *lengths.first()?, median: lengths[lengths.len() / 2], max: *lengths.last()? })
}

impl ScanReport {
    /// The error that stops training: every unreadable image with its reason. `None` if there is none.
    pub fn unreadable_error(&self) -> Option<Error> {
        (!self.unreadable.is_empty()).then(|| Error::Unreadable {
            total: self.images,
            unreadable: self.unreadable.iter().map(|u| (u.name.clone(), u.reason.clone())).collect(),
        })
    }

    /// The unreadable images' indices, ascending, as [`Dataset::with_quarantine`] takes them.
    pub fn unreadable_indices(&self) -> Vec<u32> {
        self.unreadable.iter().map(|image| image.index).collect()
    }
}

/// Lines shown of a list that may be long; the rest is counted.
const SHOWN: usize = 10;

/// The report for a person, about a screenful.
impl fmt::Display for ScanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = |f: &mut fmt::Formatter<'_>, total: usize| match total.saturating_sub(SHOWN) {
            0 => Ok(()),
            rest => writeln!(f, "  ... and {rest} more"),
        };
        writeln!(f, "images       {}", self.images)?;
        if let (Some(width), Some(height)) = (self.width, self.height) {
            for (what, spread) in [("width       ", width), ("height      ", height)] {
                let Spread { min, median, max } = spread;
                writeln!(f, "{what} {min} to {max} pixels, median {median}")?;
            }
            let largest =
                self.sizes.iter().take(3).map(|s| format!("{} of {}x{}", s.images, s.width, s.height));
            let rest = if self.sizes.len() > 3 { ", ..." } else { "" };
            let list = largest.collect::<Vec<_>>().join(", ");
            writeln!(f, "sizes        {}: {list}{rest}", self.sizes.len())?;
        }
        if self.classes.is_empty() {
            writeln!(f, "labels       none")?;
        } else {
            writeln!(f, "classes      {}", self.classes.len())?;
            let width = self.classes.iter().take(SHOWN).map(|c| c.name.chars().count()).max().unwrap_or(0);
            for class in self.classes.iter().take(SHOWN) {
                writeln!(f, "  {:width$}  {}", class.name, class.images)?;
            }
            more(f, self.classes.len())?;
        }
        let extra: usize = self.duplicates.iter().map(|group| group.len() - 1).sum();
        match self.duplicates.len() {
            0 => writeln!(f, "duplicates   none")?,
            groups => {
                write!(f, "duplicates   {extra} images repeat another, in {groups} groups")?;
                match self.duplicates_across_classes {
                    0 => writeln!(f)?,
                    across => writeln!(f, ", {across} of them across classes")?,
                }
            }
        }
        for group in self.duplicates.iter().take(SHOWN) {
            let names: Vec<&str> = group.iter().take(4).map(|image| image.name.as_str()).collect();
            let rest =
                if group.len() > 4 { format!(" = ... ({} in all)", group.len()) } else { String::new() };
            writeln!(f, "  {}{rest}", names.join(" = "))?;
        }
        more(f, self.duplicates.len())?;
        match self.unreadable.len() {
            0 => writeln!(f, "unreadable   none")?,
            count => writeln!(f, "unreadable   {count}")?,
        }
        for image in self.unreadable.iter().take(SHOWN) {
            writeln!(f, "  {}: {}", image.name, image.reason)?;
        }
        more(f, self.unreadable.len())
    }
}
