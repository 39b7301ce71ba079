//! The training curves of a run as one SVG picture: loss above, accuracy below.

use std::collections::BTreeMap;

use plotters::prelude::*;

use super::metrics::Record;
use super::plot::{Curve, Ground, Panel, Points, Stroke, averaged, draw};

const SIZE: (u32, u32) = (900, 640);
/// More points than this cannot be told apart; neighbours are averaged.
const MAX_POINTS: usize = 800;
/// Points of the smoothed loss.
const SMOOTH: usize = 60;

/// Draws the loss over the steps, and below it every percentage that was measured (kNN and its like).
///
/// Values that are not finite are left out. A run without steps gives empty axes.
pub fn curves_svg(title: &str, records: &[Record]) -> String {
    let mut svg = String::new();
    draw_both(&mut svg, title, records).expect("drawing into memory does not fail");
    svg
}

fn draw_both(
    svg: &mut String,
    title: &str,
    records: &[Record],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.margin(10, 4, 0, 0).titled(title, ("sans-serif", 22))?;
    let (loss, accuracies) = collect(records);
    let height = root.dim_in_pixel().1;
    let (above, below) = root.split_vertically(height * 11 / 20);
    let raw =
        Curve { name: String::new(), colour: 0, stroke: Stroke::Pale, points: averaged(&loss, MAX_POINTS) };
    let smooth = Curve { stroke: Stroke::Line, points: averaged(&loss, SMOOTH), ..raw.clone() };
    // Both panels share their horizontal axis.
    let last = loss.last().map_or(1.0, |point| point.0).max(1.0);
    draw(
        &above,
        &Panel { y_label: "loss".into(), curves: vec![raw, smooth], ..Panel::default() },
        last,
        Ground::White,
        14,
    )?;
    let curves = accuracies.into_iter().enumerate().map(|(colour, (name, points))| Curve {
        name,
        colour,
        stroke: Stroke::Dotted,
        points,
    });
    let below_panel = Panel {
        x_label: "optimiser step".into(),
        y_label: "accuracy, %".into(),
        curves: curves.collect(),
        bounds: Some((0.0, 100.0)),
        ..Panel::default()
    };
    draw(&below, &below_panel, last, Ground::White, 14)?;
    root.present()?;
    Ok(())
}

/// The loss, and each percentage by name, over the optimiser steps.
fn collect(records: &[Record]) -> (Points, BTreeMap<String, Points>) {
    let mut loss = Points::new();
    let mut accuracies = BTreeMap::<String, Points>::new();
    let mut now = 0.0;
    for record in records {
        match record {
            Record::Step(step) => {
                now = step.step as f64;
                if step.loss.is_finite() {
                    loss.push((now, step.loss));
                }
            }
            // Evaluations follow the steps they come after.
            Record::Eval(eval) if eval.is_percentage() && eval.value.is_finite() => {
                let name = match eval.bank.as_str() {
                    "live" | "" => eval.metric.clone(),
                    bank => format!("{} ({bank})", eval.metric),
                };
                accuracies.entry(name).or_default().push((now, eval.value));
            }
            _ => {}
        }
    }
    (loss, accuracies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::metrics::{EvalRecord, StepRecord};

    fn run(steps: u64) -> Vec<Record> {
        let mut records = Vec::new();
        for step in 1..=steps {
            let noise = ((step * 2_654_435_761) % 1000) as f64 / 1000.0 - 0.5;
            let loss = 5.0 + 4.0 * (-(step as f64) / 900.0).exp() + 0.4 * noise;
            records.push(Record::Step(StepRecord { step, loss, ..Default::default() }));
            if step % 390 == 0 {
                for (metric, high) in [("knn_top1", 55.0), ("nn_top1", 48.0)] {
                    let value = high - 35.0 * (-(step as f64) / 1200.0).exp();
                    let bank = "live".into();
                    records.push(Record::Eval(EvalRecord {
                        metric: metric.into(),
                        value,
                        bank,
                        ..Default::default()
                    }));
                }
            }
        }
        records
    }

    #[test]
    fn both_panels_are_drawn_and_labelled() {
        let svg = curves_svg("cifar10, resnet18 & <NCE>", &run(3900));
        for part in
            ["<svg", "loss", "accuracy, %", "optimiser step", "knn_top1", "nn_top1", "&amp; &lt;NCE&gt;"]
        {
            assert!(svg.contains(part), "{part}");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
        assert!(svg.len() < 200_000, "{}", svg.len());
        assert!(svg.matches("<polyline").count() >= 4);
    }

    #[test]
    fn hardly_any_or_strange_values_do_no_harm() {
        let step = |step, loss| Record::Step(StepRecord { step, loss, ..Default::default() });
        let strange =
            [step(1, f64::NAN), step(2, f64::INFINITY), step(3, 1e300), step(4, -1e300), step(5, 0.0)];
        for records in [&[][..], &run(1), &strange, &[step(1, 7.0), step(2, 7.0)]] {
            let svg = curves_svg("", records);
            assert!(svg.contains("</svg>") && !svg.contains("NaN"), "{svg}");
        }
    }
}
