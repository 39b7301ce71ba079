//! `train --pretrained`: a run that starts from weights.

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::model::Encoder;
use crate::train::start::Found;
use crate::train::state::load_trunk;

/// The settings that weights decide: a run that starts from them has their network unless it is told otherwise.
///
/// # Errors
/// None in practice: names and a number are TOML.
pub fn network_of(weights: &Found) -> Result<toml::Table> {
    let config = &weights.saved.config;
    toml::Table::try_from(serde_json::json!({
        "arch": config.arch, "family": config.family, "width": config.width,
    }))
    .map_err(|e| Error::usage(e.to_string()))
}

/// An encoder that starts from `weights`, the head as needed; `warn` hears what a person should know.
///
/// # Errors
/// If the settings ask for another network.
pub fn encoder_from(
    weights: &Found,
    config: &TrainConfig,
    device: tch::Device,
    mut warn: impl FnMut(&str),
) -> Result<Encoder> {
    let theirs = weights.saved.config.encoder();
    let ours = config.encoder();
    if (theirs.arch, theirs.family, theirs.width) != (ours.arch, ours.family, ours.width) {
        return Err(Error::Usage {
            message: format!(
                "--pretrained {}: it holds a {} ({}, width {}), but the settings ask for a {} ({}, width {})",
                weights.path().display(),
                theirs.arch,
                theirs.family,
                theirs.width,
                ours.arch,
                ours.family,
                ours.width
            ),
            hint: Some("drop --arch, --family and --width: a run takes them from the weights".into()),
        });
    }
    for note in &weights.notes {
        warn(note);
    }
    let (encoder, head) = load_trunk(&weights.checkpoint, config, device)?;
    if !head {
        warn(&format!("its head does not give {} numbers: the new one starts at random", ours.embed_dim));
    }
    Ok(encoder)
}
