//! `lemniscate bench`: where the time of training goes on this machine, with these images.

use std::path::PathBuf;
use std::time::Duration;

use super::fresh::{Asked, Opened, check_memory, checked};
use super::inputs::bar;
use super::running::Notes;
use super::settings::Settings;
use super::{say, tell};
use crate::config::{BankInit, Monitor, Preset, TrainConfig};
use crate::error::{Error, Result};
use crate::train::bench::{self, Doing};
use crate::train::start;
use crate::train::step::Objective;

/// The longest measurement: a day.
const MOST_SECONDS: f64 = 86_400.0;

/// Flags of `lemniscate bench`.
#[derive(clap::Args)]
// As those of train, so that a command line of its can be measured as it is.
#[command(args_override_self = true)]
#[command(
    after_help = "Trains as `lemniscate train` would with the same flags, and throws the result away: nothing is written or \
changed. Flags about epochs, checkpoints and the monitor have no effect. \
After the steps an evaluation pass over the same images is measured for a quarter of the time, as eval, embed and the monitor make \
it: images per second with loading, beside those of the steps' forward passes, which are without. Images are not looked through first; an unreadable one \
ends the measurement, unless --quarantine is given.\n\nExamples:\n  lemniscate bench\n  lemniscate bench photos/ -j 4\n  \
lemniscate bench imagenet/ --arch resnet50 -b 64 --seconds 120\n  lemniscate bench cifar-10-batches-bin --precision fp32 --json"
)]
pub struct Arguments {
    /// Images as `train` takes them [default: `synthetic`]
    #[arg(value_name = "DATA")]
    data: Option<PathBuf>,
    /// Measure the run that this config.toml describes; flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Published settings to start from [default: chosen from the size of the images]
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Length of the measurement of steps, besides warming up and the evaluation pass; at least one step is made
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// Start although the run seems not to fit into memory
    #[arg(long)]
    ignore_memory_estimate: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Measures, and prints a table or an object.
pub fn run(arguments: Arguments) -> Result<()> {
    if !(arguments.seconds > 0.0 && arguments.seconds <= MOST_SECONDS) {
        return Err(Error::usage(format!(
            "--seconds must be more than 0 and at most {MOST_SECONDS}, not {}",
            arguments.seconds
        )));
    }
    let mut notes = Notes::new(false);
    let opened = Opened::open(Asked {
        data: arguments.data.as_deref(),
        otherwise: Some("synthetic"),
        config: arguments.config.as_deref(),
        preset: arguments.preset,
        settings: &arguments.settings,
        index_dir: None,
    })?;
    let (config, device) = opened.settings(toml::Table::new())?;
    // What the bank holds costs nothing in a step, and features of every image much before the first.
    let config = TrainConfig {
        bank_init: BankInit::Random,
        // For the estimate of memory: an evaluation pass is measured whatever the flag says.
        monitor: Monitor::Knn,
        ..config
    };
    let splits = opened.splits;
    check_memory(arguments.ignore_memory_estimate, &mut notes, &config, splits.train.len(), device)?;
    let splits = if config.quarantine { checked(splits, &config)? } else { splits };
    config.check_last_batch(splits.train.len() - splits.train.quarantined().len())?;
    let noise = start::noise(&config, &splits.train)?;
    let encoder = start::fresh_encoder(&config, device);
    let mut state = start::fresh_state(&config, &splits, encoder, &mut |_| {})?;
    let objective = Objective::new(&config, noise, splits.train.quarantined().to_vec());

    let steps = bar(arguments.seconds.ceil() as usize, "seconds of steps");
    let mut stepping = false;
    let mut doing = |doing: Doing| match doing {
        Doing::Peak => tell("measuring the peak of this machine"),
        Doing::WarmUp => tell("warming up"),
        Doing::Steps(so_far) => {
            if !std::mem::replace(&mut stepping, true) {
                tell(&format!("measuring steps for {} s", arguments.seconds));
            }
            steps.set_position(so_far.as_secs());
        }
        Doing::Evaluation => tell("measuring an evaluation pass"),
    };
    let duration = Duration::from_secs_f64(arguments.seconds);
    let report = bench::run(&config, &splits, &mut state, &objective, duration, &mut doing);
    steps.finish_and_clear();
    let report = report?;
    if arguments.json {
        return say(serde_json::to_string(&report).map_err(|e| Error::usage(format!("JSON: {e}")))?);
    }
    say(report)
}
