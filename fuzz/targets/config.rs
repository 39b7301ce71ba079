//! Configuration: TOML text over a preset, checked; what was accepted is written, and reads back the same.
#![no_main]

use std::path::Path;

use lemniscate::config::{Preset, TrainConfig};
use lemniscate::data::DataFormat;
use libfuzzer_sys::fuzz_target;

fn resolve(preset: Preset, text: &str) -> Option<TrainConfig> {
    let layers = [("--config", text.parse().ok()?)];
    TrainConfig::resolve(preset, Path::new("photos"), DataFormat::Flat, &layers).ok()
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for preset in [Preset::Cifar, Preset::Imagenet] {
        let Some(config) = resolve(preset, text) else { continue };
        let _ = config.check_last_batch(1 + data.len());
        let schedule = config.lr_schedule();
        for epoch in [config.start_epoch, config.epochs - 1] {
            let (warm, all) = (config.warmup_epochs, config.epochs as f64);
            let lr = lemniscate::optim::lr(config.lr, &schedule, warm, all, epoch as f64);
            assert!(lr.is_finite() && lr >= 0.0, "{lr} in epoch {epoch}");
        }
        let written = config.to_toml().expect("what was read can be written");
        assert_eq!(resolve(preset, &written).as_ref(), Some(&config));
    }
});
