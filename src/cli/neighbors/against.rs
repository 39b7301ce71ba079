//! What a checkpoint's retrievals are compared with: raw pixels, and other encoders with their own preprocessing.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::cli::subject::Subject;
use crate::config::{TrainConfig, name_of};
use crate::error::Result;
use crate::eval::describe::{Describer, PIXEL_SIDE};
use crate::eval::features::Input;
use crate::interop;
use crate::model::{Encoder, Head, Layer};
use crate::train::start::Found;
use crate::train::state::load_encoder;

/// The published embedding width. A head of another one, in a file of others, is taken for a classifier's.
const EMBED_DIM: usize = 128;

/// A value of `--against`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Against {
    /// The pixels.
    RawPixels,
    /// An encoder, and where its features are taken if that was said.
    File(PathBuf, Option<Layer>),
}

impl FromStr for Against {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        if text == "raw-pixels" {
            return Ok(Against::RawPixels);
        }
        let layer = text.rsplit_once('@').and_then(|(path, layer)| Some((path, layer.parse().ok()?)));
        Ok(match layer {
            Some((path, layer)) => Against::File(path.into(), Some(layer)),
            None => Against::File(text.into(), None),
        })
    }
}

/// Something to compare with, open.
pub struct Opponent {
    /// What a person calls it.
    pub name: String,
    input: Input,
    /// Not for pixels.
    encoder: Option<(Encoder, Layer, String)>,
}

impl Against {
    /// Opens it; prints what a person should know of it.
    ///
    /// # Errors
    /// If it is no checkpoint that we know.
    pub fn open(&self, subject: &Subject, device: tch::Device) -> Result<Opponent> {
        let (path, layer) = match self {
            Against::RawPixels => {
                let family = subject.found.saved.config.family;
                let input = Input::new(family, PIXEL_SIDE, subject.input.loader.workers);
                return Ok(Opponent { name: "raw pixels".into(), input, encoder: None });
            }
            Against::File(path, layer) => (path, *layer),
        };
        // A file whose head has another form than ours may still have a trunk of ours.
        let (found, whole) = match interop::find(path) {
            Ok(found) => (found, true),
            Err(error) => (interop::find_trunk(path).map_err(|_| error)?, false),
        };
        for note in &found.notes {
            crate::cli::note(format_args!("{}: {note}", path.display()));
        }
        let layer = layer.unwrap_or_else(|| if whole { default_layer(&found) } else { Layer::Pooled });
        let config = &found.saved.config;
        let encoder = load_encoder(&found.checkpoint, config, device)?;
        let input = Input::new(config.family, config.image_size, subject.input.loader.workers);
        let about = settings(config, layer);
        Ok(Opponent { name: name_of_checkpoint(path), input, encoder: Some((encoder, layer, about)) })
    }
}

/// Where the features of a checkpoint are taken unless it is said: the embedding where the head makes one, and before
/// the head where it makes something else, such as the scores of a classifier.
fn default_layer(found: &Found) -> Layer {
    let Found { saved, .. } = found;
    let embeds = saved.origin.is_none()
        || saved.data.images > 0
        || saved.config.head == Head::None
        || saved.config.embed_dim == EMBED_DIM;
    if embeds { Layer::Embedding } else { Layer::Pooled }
}

impl Opponent {
    /// What it makes of images.
    pub fn describer(&self) -> Describer<'_> {
        let input = &self.input;
        match &self.encoder {
            Some((encoder, layer, _)) => Describer::Encoder { encoder, layer: *layer, input },
            None => Describer::Pixels { input },
        }
    }

    /// Its settings, in a few words.
    pub fn about(&self) -> String {
        match &self.encoder {
            Some((_, _, about)) => about.clone(),
            None => format!("{PIXEL_SIDE} × {PIXEL_SIDE} px after the centre crop, normalised per channel"),
        }
    }
}

/// A network, a layer and a size, in a few words.
pub fn settings(config: &TrainConfig, layer: Layer) -> String {
    let dim = config.encoder().dim_at(layer);
    format!(
        "{} ({}), {layer}, {dim} numbers, {} px",
        name_of(config.arch),
        name_of(config.family),
        config.image_size
    )
}

/// What a person calls a checkpoint: its file's name, with its folder's where all files are called the same.
pub fn name_of_checkpoint(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    match (name(path), path.parent().and_then(name)) {
        (Some(file), Some(folder)) if path.extension().is_some_and(|e| e == "ckpt") => {
            format!("{folder}/{file}")
        }
        (Some(file), _) => file,
        (None, _) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_may_follow_a_file() {
        let of = |text: &str| Against::from_str(text).unwrap();
        assert_eq!(of("raw-pixels"), Against::RawPixels);
        assert_eq!(of("a/b.pth"), Against::File("a/b.pth".into(), None));
        assert_eq!(of("a/b.pth@stage3"), Against::File("a/b.pth".into(), Some(Layer::Stage(3))));
        assert_eq!(of("a@b.pth"), Against::File("a@b.pth".into(), None));
    }

    #[test]
    fn checkpoints_have_short_names() {
        let names =
            ["runs/a/last.ckpt", "runs/a", "b.pth", "x/b.pth"].map(|p| name_of_checkpoint(p.as_ref()));
        assert_eq!(names, ["a/last.ckpt", "a", "b.pth", "b.pth"]);
    }
}
