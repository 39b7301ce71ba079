//! TensorBoard event files: scalars, and an image of the retrievals.
//!
//! A file is a sequence of records: length `u64`, its masked CRC, the message, its masked CRC, all little-endian (the
//! TFRecord format). Every process that trains writes a file of its own, named so that names sort in the order of
//! writing. A file of a resumed run begins with a session start at the first step that is still to come; readers drop
//! what older files say of that step and later ones, so no step is shown twice.

mod proto;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use image::{ImageFormat, RgbImage};
use prost::Message;

use self::proto::{Content, Event, Image, SessionLog, Summary, Value, What};
use super::metrics::{self, EvalRecord, Record, StepRecord};
use crate::checkpoint::state::Progress;
use crate::error::{Error, Result};

/// What the first record of a file says.
const VERSION: &str = "brain.Event:2";
/// Status of a session that starts.
const START: i32 = 1;

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts a new file in `folder`. In a resumed run `replaces` is the first step whose older events no longer count.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(folder: &Path, replaces: Option<u64>) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", e))?;
        let path = folder.join(next_name(folder)?);
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        let mut writer = EventWriter { file: file.map_err(|e| Error::io(&path, "create", e))?, path };
        writer.write(0, What::FileVersion(VERSION.into()))?;
        if let Some(step) = replaces {
            writer.write(step, What::SessionLog(SessionLog { status: START }))?;
        }
        Ok(writer)
    }

    /// As [`create`](Self::create) for a run that goes on in `folder` from `progress`, whose steps `metrics` has.
    ///
    /// Inside an epoch, its last step's events may be followed by measurements that will be made again: they are all
    /// replaced, and the step's own written once more. At the beginning of an epoch everything so far counts.
    ///
    /// # Errors
    /// If it cannot be created, or `metrics` cannot be read.
    pub fn resume(folder: &Path, progress: &Progress, metrics: &Path) -> Result<Self> {
        let step = progress.step;
        if step == 0 {
            return Self::create(folder, None);
        }
        if progress.step_in_epoch == 0 {
            return Self::create(folder, Some(step + 1));
        }
        let mut last = None;
        metrics::for_each(metrics, |record| match record {
            Record::Step(record) if record.step == step => last = Some(record),
            _ => {}
        })?;
        let mut writer = Self::create(folder, Some(step))?;
        last.map_or(Ok(()), |record| writer.step(&record))?;
        Ok(writer)
    }

    /// Adds what `record` says of its step.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        let waiting = 100.0 * record.data_ms / record.step_ms.max(f64::MIN_POSITIVE);
        let mut scalars = vec![
            ("train/loss", record.loss),
            ("train/lr", record.lr),
            ("speed/images_per_s", record.images_per_s),
            ("speed/data_wait_percent", waiting),
        ];
        scalars.extend(record.ln_z.map(|ln_z| ("train/ln_z", ln_z)));
        self.scalars(record.step, &scalars)
    }

    /// Adds what was measured after `step` optimiser steps.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn evaluation(&mut self, step: u64, record: &EvalRecord) -> Result<()> {
        self.scalars(step, &[(&format!("eval/{}", record.metric), record.value)])
    }

    /// Adds a picture under `tag`.
    ///
    /// # Errors
    /// If it cannot be encoded or written.
    pub fn image(&mut self, step: u64, tag: &str, picture: &RgbImage) -> Result<()> {
        let mut png = std::io::Cursor::new(Vec::new());
        let failed = |e| Error::io(&self.path, "encode a picture for", std::io::Error::other(e));
        picture.write_to(&mut png, ImageFormat::Png).map_err(failed)?;
        let image = Image {
            height: picture.height() as i32,
            width: picture.width() as i32,
            colorspace: 3,
            encoded_image_string: png.into_inner(),
        };
        let value = vec![Value { tag: tag.to_owned(), content: Some(Content::Image(image)) }];
        self.write(step, What::Summary(Summary { value }))
    }

    fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let value = scalars.iter().map(|&(tag, value)| Value {
            tag: tag.to_owned(),
            content: Some(Content::SimpleValue(value as f32)),
        });
        self.write(step, What::Summary(Summary { value: value.collect() }))
    }

    fn write(&mut self, step: u64, what: What) -> Result<()> {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let event = Event { wall_time, step: step as i64, what: Some(what) };
        self.file.write_all(&record(&event.encode_to_vec())).map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// `message` as a record, in one piece so that one write adds it.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(message.len() + 16);
    bytes.extend(length);
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(message);
    bytes.extend(masked_crc(message).to_le_bytes());
    bytes
}

/// CRC-32C, rotated and shifted, so that a record of records does not check itself.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A name that sorts after every event file in `folder`, whatever the clock says now: readers take files in the order of
/// their names.
fn next_name(folder: &Path) -> Result<String> {
    let mut seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut number = 0u64;
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))? {
        let entry = entry.map_err(|e| Error::io(folder, "list", e))?;
        let name = entry.file_name();
        let parts: Vec<_> = name.to_str().unwrap_or_default().split('.').collect();
        let ["events", "out", "tfevents", time, count, ..] = parts[..] else { continue };
        seconds = seconds.max(time.parse().unwrap_or(0));
        number = number.max(count.parse::<u64>().map_or(0, |n| n + 1));
    }
    Ok(format!("events.out.tfevents.{seconds:010}.{number:06}.lemniscate"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::{names_in, scratch};

    /// The records of a file, checked as TensorBoard checks them.
    fn events(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            let (crc, after) = after.split_at(4);
            assert_eq!(crc, masked_crc(length).to_le_bytes());
            let (message, after) = after.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            let (crc, after) = after.split_at(4);
            assert_eq!(crc, masked_crc(message).to_le_bytes());
            events.push(Event::decode(message).unwrap());
            rest = after;
        }
        events
    }

    #[test]
    fn the_checksum_is_the_documented_one() {
        // CRC-32C of "123456789" is e3069283 (RFC 3720); the mask is TensorFlow's.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
        // The length 24 of the record that begins most event files.
        assert_eq!(masked_crc(&24u64.to_le_bytes()).to_le_bytes(), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn what_is_written_reads_back() {
        let (_dir, folder) = scratch();
        let mut writer = EventWriter::create(&folder, None).unwrap();
        let step = StepRecord {
            step: 7,
            loss: 8.5,
            lr: 0.03,
            images_per_s: 150.0,
            data_ms: 5.0,
            step_ms: 100.0,
            ln_z: Some(11.5),
            ..Default::default()
        };
        writer.step(&step).unwrap();
        let eval = EvalRecord { metric: "knn_top1".into(), value: 34.5, ..Default::default() };
        writer.evaluation(7, &eval).unwrap();
        writer.image(7, "retrievals", &RgbImage::new(5, 3)).unwrap();
        let events = events(&writer.path);
        assert_eq!(events[0].what, Some(What::FileVersion(VERSION.into())));
        assert_eq!(events.len(), 4);
        let values = |event: &Event| match &event.what {
            Some(What::Summary(summary)) => summary.value.clone(),
            other => panic!("{other:?}"),
        };
        let scalar = |value: &Value| match value.content {
            Some(Content::SimpleValue(x)) => (value.tag.clone(), x),
            ref other => panic!("{other:?}"),
        };
        let written: Vec<_> = values(&events[1]).iter().map(scalar).collect();
        let expected = [
            ("train/loss", 8.5),
            ("train/lr", 0.03),
            ("speed/images_per_s", 150.0),
            ("speed/data_wait_percent", 5.0),
            ("train/ln_z", 11.5),
        ];
        assert_eq!(written, expected.map(|(tag, x)| (tag.to_owned(), x)));
        assert_eq!(scalar(&values(&events[2])[0]), ("eval/knn_top1".into(), 34.5));
        let Some(Content::Image(image)) = &values(&events[3])[0].content else { panic!() };
        assert_eq!((image.height, image.width, image.colorspace), (3, 5, 3));
        let decoded = image::load_from_memory(&image.encoded_image_string).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (5, 3));
        assert!(events.iter().skip(1).all(|event| event.step == 7 && event.wall_time > 1.7e9));
    }

    #[test]
    fn a_resumed_run_starts_a_session_in_a_file_that_sorts_last() {
        let (_dir, folder) = scratch();
        // A clock that stood in the future.
        fs::write(folder.join("events.out.tfevents.9000000000.000007.elsewhere"), b"").unwrap();
        fs::write(folder.join("events.out.tfevents.notes.txt"), b"").unwrap();
        let paths: Vec<_> =
            [None, Some(5), Some(10)].map(|step| EventWriter::create(&folder, step).unwrap().path).into();
        assert!(paths.is_sorted() && names_in(&folder)[1].contains("000008"), "{:?}", names_in(&folder));
        let last = events(&paths[2]);
        assert_eq!(last[1].what, Some(What::SessionLog(SessionLog { status: START })));
        assert_eq!(last[1].step, 10);
        assert_eq!(events(&paths[0]).len(), 1);
    }

    #[test]
    fn measurements_that_will_be_made_again_are_replaced() {
        let (_dir, folder) = scratch();
        let metrics = folder.join("metrics.jsonl");
        let mut writer = metrics::MetricsWriter::create(&metrics).unwrap();
        for step in 1..=4 {
            writer.step(&StepRecord { step, loss: step as f64, ..Default::default() }).unwrap();
        }
        let begin = |step, step_in_epoch| {
            let progress = Progress { step, step_in_epoch, ..Progress::default() };
            let events =
                events(&EventWriter::resume(&folder.join("events"), &progress, &metrics).unwrap().path);
            events.iter().skip(1).map(|event| event.step).collect::<Vec<_>>()
        };
        assert_eq!(begin(0, 0), [0; 0]);
        // After an epoch that was measured.
        assert_eq!(begin(4, 0), [5]);
        // After the steps of an epoch, or in the middle: the session's start, and the step again.
        assert_eq!(begin(4, 2), [4, 4]);
        // A run that goes on in another folder has no such step.
        assert_eq!(begin(9, 1), [9]);
    }
}
