//! What `lemniscate linear` says: the protocol, and what was reached.

use serde_json::json;

use super::arguments::{Arguments, Solver};
use crate::cli::say;
use crate::data::dataset::Dataset;
use crate::error::Result;
use crate::eval::linear::Outcome;
use crate::eval::linear::features::Place;
use crate::eval::linear::sgd::SgdSettings;

/// The protocol in two lines.
pub(super) fn describe(arguments: &Arguments, held_out: usize, images: usize) -> String {
    let what = match arguments.solver() {
        Solver::Lbfgs => "logistic regression with L2, full batch (L-BFGS)".to_owned(),
        Solver::Sgd => {
            let SgdSettings { epochs, batch_size, momentum, weight_decay, milestones } = arguments.sgd();
            format!(
                "SGD, {epochs} epochs, batch {batch_size}, momentum {momentum}, weight decay {weight_decay}, lr ×0.1 after {} and {}",
                milestones[0], milestones[1]
            )
        }
    };
    let views = if arguments.augment { "random views" } else { "no augmentation" };
    let scale = if arguments.raw { "as they are" } else { "standardised by the training images" };
    let choice = match arguments.candidates().len() {
        1 => format!("given, not chosen; all {images} training images"),
        n => format!("chosen from {n} on {held_out} held-out training images; tested with all {images}"),
    };
    format!(
        "linear classification, encoder frozen: {what}; {views}; features {scale}\n{}: {choice}",
        name(arguments)
    )
}

/// What is swept, in words.
fn name(arguments: &Arguments) -> &'static str {
    match arguments.solver() {
        Solver::Lbfgs => "L2",
        Solver::Sgd => "learning rate",
    }
}

/// One layer's result with all its settings.
pub(super) fn result(
    arguments: &Arguments,
    place: &Place,
    outcome: &Outcome,
    held_out: usize,
) -> serde_json::Value {
    let mut value = json!({
        "layer": place.layer, "grid": place.grid, "numbers": place.dim(), "solver": arguments.solver(),
        "augment": arguments.augment, "standardised": !arguments.raw, "seed": arguments.seed,
        "held_out_images": if arguments.candidates().len() > 1 { held_out } else { 0 },
        "swept": match arguments.solver() { Solver::Lbfgs => "l2", Solver::Sgd => "lr" },
    });
    let more = match arguments.solver() {
        Solver::Lbfgs => json!({ "most_iterations": arguments.iterations }),
        Solver::Sgd => json!(arguments.sgd()),
    };
    for part in [more, json!(outcome)] {
        if let (Some(all), serde_json::Value::Object(part)) = (value.as_object_mut(), part) {
            all.extend(part);
        }
    }
    value
}

/// The results, for people or as JSON.
pub(super) fn print(
    arguments: &Arguments,
    places: &[Place],
    outcomes: &[Outcome],
    results: &[serde_json::Value],
    train: &Dataset,
) -> Result<()> {
    if arguments.json {
        return results.iter().try_for_each(say);
    }
    say(format_args!("layer       numbers  {:>13}  held-out   top-1   top-5", name(arguments)))?;
    for (place, outcome) in places.iter().zip(outcomes) {
        let chosen = outcome.candidates.iter().find(|c| c.setting == outcome.chosen);
        let held_out = chosen
            .and_then(|c| c.held_out_top1)
            .map_or("-".to_owned(), |share| format!("{:.2}", 100.0 * share));
        say(format_args!(
            "{:<10}  {:>7}  {:>13}  {held_out:>8}  {:>6.2}  {:>6.2}",
            place.layer.to_string(),
            place.dim(),
            outcome.chosen,
            100.0 * outcome.top1,
            100.0 * outcome.top5
        ))?;
        if outcome.converged == Some(false) {
            let norm = outcome.gradient_norm.unwrap_or(f64::NAN);
            say(format_args!(
                "    not converged after {} iterations: gradient {norm:.1e}",
                outcome.iterations
            ))?;
        }
        if arguments.per_class {
            for (class, share) in outcome.per_class.iter().enumerate() {
                let name = train.class_name(class as u32).unwrap_or_default();
                say(format_args!("    {name:<24} {:>6.2}", 100.0 * share))?;
            }
        }
    }
    say(format_args!("chance: {:.2} %; the encoder is unchanged", 100.0 / train.n_classes() as f64))
}
