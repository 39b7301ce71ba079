//! The settings and counters that come with an imported state.

use std::path::Path;

use super::Draft;
use crate::checkpoint::state::Progress;
use crate::config::{Monitor, ObjectiveKind, Preset, TrainConfig};
use crate::data::detect::DataFormat;
use crate::error::Result;
use crate::interop::contents::Contents;
use crate::interop::recognise::Match;
use crate::model::{Family, PrecisionChoice};
use crate::optim::lr;
use crate::train::state::{DataIdentity, Origin, Saved};

impl Draft<'_> {
    /// The settings of a run that this file could have come from: those it states, and the published ones.
    pub(super) fn settings(
        &mut self,
        network: &Match,
        contents: &Contents<'_>,
        bank: Option<[usize; 2]>,
    ) -> Result<Saved> {
        let preset = match network.config.family {
            Family::Cifar => Preset::Cifar,
            Family::ImageNet => Preset::Imagenet,
        };
        let mut config = TrainConfig::preset(preset, Path::new(""), DataFormat::Folder);
        config.arch = network.config.arch;
        config.width = network.config.width as usize;
        config.embed_dim = network.config.embed_dim as usize;
        config.head = network.config.head;
        // The published monitor, which a stated best accuracy belongs to; and no rounding that the file did not know.
        config.monitor = Monitor::Nn;
        config.precision = PrecisionChoice::Fp32;
        let mut stated: Vec<&str> = vec!["arch", "family", "width", "embed-dim", "head"];
        let mut ln_z = None;
        if let (Some(bank), Some(_)) = (&contents.bank, bank) {
            let trained = contents.epoch.is_some_and(|epoch| epoch > 0);
            match bank.params[..] {
                [temperature, m] => {
                    (config.objective, config.n_negatives) = (ObjectiveKind::Softmax, 0);
                    (config.temperature, config.bank_momentum) = (clean(temperature), clean(m) as f32);
                }
                [k, temperature, z, m] => {
                    let softmax = bank.softmax || (z <= 0.0 && trained);
                    config.objective =
                        if softmax { ObjectiveKind::SampledSoftmax } else { ObjectiveKind::Nce };
                    config.n_negatives = k.max(0.0) as usize;
                    (config.temperature, config.bank_momentum) = (clean(temperature), clean(m) as f32);
                    ln_z = (z > 0.0 && !softmax).then(|| z.ln());
                }
                _ => {
                    let found = format!("{:?}", bank.params);
                    return Err(self.refuse("the bank's parameters [K, T, Z, m] or [T, m]", found));
                }
            }
            stated.extend(["objective", "n-negatives", "temperature", "bank-momentum"]);
        }
        let epoch = contents.epoch.unwrap_or(0);
        config.epochs = config.epochs.max(epoch);
        if let Some(optimizer) = &contents.optimizer {
            let last_epoch = epoch.saturating_sub(1) as f64;
            // The file keeps the rate of its last epoch; a run keeps that of its first.
            let factor = lr(1.0, &config.lr_schedule(), 0.0, config.epochs as f64, last_epoch);
            let base = optimizer.initial_lr.or(optimizer.lr.map(|lr| clean(lr / factor)));
            for (key, slot, value) in [
                ("lr", &mut config.lr, base),
                ("momentum", &mut config.momentum, optimizer.momentum_factor),
                ("weight-decay", &mut config.weight_decay, optimizer.weight_decay),
            ] {
                if let Some(value) = value {
                    *slot = value;
                    stated.push(key);
                }
            }
        }
        config.validate().map_err(|error| self.refuse("settings that a run can have", error.to_string()))?;
        let images = bank.map_or(0, |[n, _]| n);
        let progress = Progress {
            epoch,
            step: epoch * images.div_ceil(config.batch_size) as u64,
            images_seen: epoch * images as u64,
            ln_z,
            best: contents.best,
            best_epoch: contents.best.map(|_| epoch.saturating_sub(1)),
            ..Progress::default()
        };
        let file = self.source.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let data = DataIdentity {
            images,
            fingerprint: None,
            quarantined: Vec::new(),
            test_quarantined: Vec::new(),
            classes: Vec::new(),
        };
        let origin = Origin {
            file,
            format: self.source.describe(),
            stated: stated.into_iter().map(str::to_owned).collect(),
        };
        Ok(Saved { config, progress, data, origin: Some(origin) })
    }
}

/// A number that a person typed and a program kept in 32 bits, or multiplied by a power of ten, as it was typed.
fn clean(value: f64) -> f64 {
    format!("{value:.6e}").parse().unwrap_or(value)
}
