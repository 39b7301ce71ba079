//! The training curves of a run as one SVG picture: loss above, accuracy below.

use std::collections::BTreeMap;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::metrics::Record;

type Drawn<T> = std::result::Result<T, Box<dyn std::error::Error>>;
/// Steps and values.
type Curve = Vec<(f64, f64)>;

const SIZE: (u32, u32) = (900, 640);
/// More points than this cannot be told apart; neighbours are averaged.
const MAX_POINTS: usize = 800;
const INK: RGBColor = RGBColor(60, 64, 72);
const GRID: RGBColor = RGBColor(228, 230, 234);
/// Distinct in hue and in lightness.
const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 95, 168), RGBColor(214, 106, 20), RGBColor(46, 139, 87), RGBColor(140, 70, 150)];

/// Draws the loss over the steps, and below it every percentage that was measured (kNN and its like).
///
/// Values that are not finite are left out. A run without steps gives empty axes.
pub fn curves_svg(title: &str, records: &[Record]) -> String {
    let mut svg = String::new();
    draw(&mut svg, title, records).expect("drawing into memory does not fail");
    svg
}

fn draw(svg: &mut String, title: &str, records: &[Record]) -> Drawn<()> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.margin(10, 4, 0, 0).titled(title, ("sans-serif", 22).into_font().color(&INK))?;
    let (loss, accuracies) = collect(records);
    let last = loss.last().map_or(1.0, |point| point.0).max(1.0);
    let height = root.dim_in_pixel().1;
    let (above, below) = root.split_vertically(height * 11 / 20);
    let raw = averaged(&loss, MAX_POINTS);
    let smooth = averaged(&loss, 60);
    let pale = ("", COLOURS[0].mix(0.3), 1, &raw);
    panel(&above, "", "loss", last, &[pale, ("", COLOURS[0].mix(1.0), 2, &smooth)], range(&raw))?;
    let curves: Vec<_> = accuracies
        .iter()
        .enumerate()
        .map(|(i, (name, curve))| (name.as_str(), COLOURS[i % COLOURS.len()].mix(1.0), 2, curve))
        .collect();
    let all: Curve = accuracies.values().flatten().copied().collect();
    let (low, high) = range(&all);
    panel(&below, "optimiser step", "accuracy, %", last, &curves, (low.max(0.0), high.min(100.0)))?;
    root.present()?;
    Ok(())
}

/// The loss, and each percentage by name, over the optimiser steps.
fn collect(records: &[Record]) -> (Curve, BTreeMap<String, Curve>) {
    let mut loss = Curve::new();
    let mut accuracies = BTreeMap::<String, Curve>::new();
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

fn panel(
    area: &DrawingArea<SVGBackend, Shift>,
    x_label: &str,
    y_label: &str,
    last: f64,
    curves: &[(&str, RGBAColor, u32, &Curve)],
    (low, high): (f64, f64),
) -> Drawn<()> {
    let font = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(area)
        .margin_left(12)
        .margin_right(28)
        .margin_top(8)
        .x_label_area_size(if x_label.is_empty() { 26 } else { 46 })
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last, low..high)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(INK.mix(0.6))
        .x_desc(x_label)
        .y_desc(y_label)
        .x_labels(8)
        .y_labels(6)
        .x_label_formatter(&|x| grouped(*x))
        .y_label_formatter(&|y| if high - low < 2.0 { format!("{y:.2}") } else { format!("{y:.1}") })
        .label_style(font(14))
        .axis_desc_style(font(15))
        .draw()?;
    for (name, colour, width, curve) in curves {
        let style = colour.stroke_width(*width);
        let series = chart.draw_series(LineSeries::new(curve.iter().copied(), style))?;
        if !name.is_empty() {
            series.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            // A single evaluation is no line.
            chart.draw_series(curve.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
    }
    if curves.iter().any(|(name, ..)| !name.is_empty()) {
        let place = SeriesLabelPosition::LowerRight;
        let label = font(14);
        chart
            .configure_series_labels()
            .position(place)
            .background_style(WHITE.mix(0.85))
            .label_font(label)
            .draw()?;
    }
    Ok(())
}

/// At most `points` points, each the mean of its neighbours.
fn averaged(curve: &Curve, points: usize) -> Curve {
    let size = curve.len().div_ceil(points).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    curve.chunks(size).map(mean).collect()
}

/// The range of the values with some air around it.
fn range(curve: &Curve) -> (f64, f64) {
    let low = curve.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = curve.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return (0.0, 1.0);
    }
    // Some width even where all values are equal, whatever their size.
    let air = (0.06 * (high - low)).max(1e-3 * high.abs()).max(1e-3);
    (low - air, high + air)
}

/// `1234567` as `1 234 567`.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{a0}');
        }
        text.push(digit);
    }
    text
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

    #[test]
    fn averaging_keeps_means_and_bounds_points() {
        let curve: Curve = (0..1001).map(|i| (f64::from(i), 2.0)).collect();
        let few = averaged(&curve, 100);
        assert!(few.len() <= 100 && few.iter().all(|p| p.1 == 2.0));
        assert_eq!(averaged(&curve, 2000), curve);
        assert_eq!([999.0, 1000.0, 1_234_567.0].map(grouped), ["999", "1\u{a0}000", "1\u{a0}234\u{a0}567"]);
    }
}
