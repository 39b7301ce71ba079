//! How settings come together: preset, `--config` file and flags, TOML tables laid over each other.

use std::path::Path;

use serde::Deserialize;
use toml::Table;

use super::{PUBLISHED_NEGATIVES, Preset, TrainConfig};
use crate::data::detect::DataFormat;
use crate::error::{Error, Result};
use crate::model::Head;

impl TrainConfig {
    /// Lays `layers` over the preset, each over the one before, and checks the result.
    ///
    /// A layer is a table of the keys of this struct, with where it came from for messages.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown key, a value of the wrong type, or an impossible combination.
    pub fn resolve(
        preset: Preset,
        data: &Path,
        format: DataFormat,
        layers: &[(&str, Table)],
    ) -> Result<Self> {
        let base = Self::preset(preset, data, format);
        let mut table = Table::try_from(&base).map_err(|e| Error::usage(format!("the data path: {e}")))?;
        let mut config = base;
        for (origin, layer) in layers {
            overlay(&mut table, layer.clone());
            settle_objective(&mut table, layer);
            // Read back after each layer, so that a message can name the layer that is wrong.
            config = Self::deserialize(table.clone())
                .map_err(|e| Error::usage(format!("{origin}: {}", e.to_string().trim())))?;
        }
        // Without a head the trunk decides how wide an embedding is, unless somebody says otherwise and is refused.
        if config.head == Head::None && !layers.iter().any(|(_, layer)| layer.contains_key("embed-dim")) {
            config.embed_dim = config.encoder().pooled_dim() as usize;
        }
        config.augmentation.size = config.image_size;
        config.validate()?;
        Ok(config)
    }
}

/// Reads a `--config` file as a layer.
///
/// # Errors
/// If it cannot be read or is not TOML; the message has line and column.
pub fn read_layer(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read the configuration", e))?;
    text.parse()
        .map_err(|e: toml::de::Error| Error::format(path, "TOML settings", e.to_string().trim().to_owned()))
}

/// `--nce-k 0` means the full softmax, as published. Where `layer` names only one of objective and number of
/// negatives, the other one in `table` follows it.
fn settle_objective(table: &mut Table, layer: &Table) {
    let softmax =
        |objective: Option<&toml::Value>| objective.and_then(toml::Value::as_str) == Some("softmax");
    match (layer.get("objective"), layer.get("n-negatives").and_then(toml::Value::as_integer)) {
        (None, Some(0)) => {
            table.insert("objective".into(), "softmax".into());
        }
        (None, Some(_)) if softmax(table.get("objective")) => {
            table.insert("objective".into(), "nce".into());
        }
        (objective @ Some(_), None) if softmax(objective) => {
            table.insert("n-negatives".into(), 0.into());
        }
        (Some(_), None) if table.get("n-negatives").and_then(toml::Value::as_integer) == Some(0) => {
            table.insert("n-negatives".into(), PUBLISHED_NEGATIVES.into());
        }
        _ => {}
    }
}

/// Lays `over` on `base`: tables merge, everything else replaces.
fn overlay(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
