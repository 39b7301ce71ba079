//! `lemniscate finetune`: what an encoder is worth where few labels are to be had.

mod arguments;
mod bench;

pub use arguments::Arguments;

use serde_json::Value;

use arguments::Start;
use bench::{Bench, key};

use super::inputs::set_threads;
use super::say;
use super::subject::Subject;
use crate::checkpoint::signals::Interrupt;
use crate::config::name_of;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};

/// Fine-tunes, tests, and prints what is reached.
pub fn run(arguments: Arguments) -> Result<()> {
    arguments.check()?;
    set_threads(arguments.threads)?;
    let subject = arguments.subject.open()?;
    let test = labelled_test(&subject)?;
    let mut bench = Bench::open(&arguments, &subject, test)?;
    if !arguments.json {
        say(subject.describe())?;
        say(bench.describe())?;
    }
    let plan: Vec<(f64, Start)> = arguments
        .fractions
        .iter()
        .flat_map(|&fraction| arguments.starts().iter().map(move |&start| (fraction, start)))
        .collect();
    let interrupt = Interrupt::install()?;
    let mut results = Vec::new();
    for &(fraction, start) in &plan {
        let result = match bench.finished.get(&key(fraction, start)) {
            Some(result) => result.clone(),
            None => bench.run_one(fraction, start, &|| {
                let kept = format!(
                    "{} of {} are finished, in {}; the same command goes on",
                    results.len(),
                    plan.len(),
                    bench.out.display()
                );
                if interrupt.interrupted() { Err(Error::Interrupted { saved: kept }) } else { Ok(()) }
            })?,
        };
        if !bench.finished.contains_key(&key(fraction, start)) {
            bench.keep(fraction, start, &result)?;
        }
        results.push(result);
    }
    print(&arguments, &plan, &results, &subject.splits.train)
}

/// The test images, if both splits can be learnt from and tested with.
fn labelled_test(subject: &Subject) -> Result<&Dataset> {
    let splits = &subject.splits;
    let refuse = |reason: &str, hint: &str| {
        Err(Error::Data { path: splits.root.clone(), reason: reason.into(), hint: Some(hint.into()) })
    };
    let Some(test) = &splits.test else {
        return refuse("there are no test images to test a classifier on", "--test-data names some");
    };
    if splits.train.labels().is_none() || test.labels().is_none() || splits.train.n_classes() < 2 {
        return refuse(
            "fine-tuning needs labels of two classes or more",
            "a folder for each class, or a list `path,label`, gives them",
        );
    }
    Ok(test)
}

fn print(arguments: &Arguments, plan: &[(f64, Start)], results: &[Value], train: &Dataset) -> Result<()> {
    if arguments.json {
        return results.iter().try_for_each(say);
    }
    say("labels    images  start         top-1   top-5")?;
    let percent = |value: &Value| 100.0 * value.as_f64().unwrap_or(f64::NAN);
    for ((fraction, start), result) in plan.iter().zip(results) {
        say(format_args!(
            "{:>6} %  {:>6}  {:<10}  {:>7.2}  {:>6.2}",
            100.0 * fraction,
            result["images"],
            name_of(*start),
            percent(&result["top1"]),
            percent(&result["top5"])
        ))?;
        if arguments.per_class {
            for (class, share) in result["per_class"].as_array().into_iter().flatten().enumerate() {
                let name = train.class_name(class as u32).unwrap_or_default();
                say(format_args!("    {name:<24} {:>6.2}", percent(share)))?;
            }
        }
    }
    say(format_args!("chance: {:.2} %", 100.0 / train.n_classes() as f64))
}
