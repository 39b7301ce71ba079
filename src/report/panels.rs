//! Which curves of runs are drawn: of one run over its steps, of several over their epochs, which differ in batch size.

use super::history::{History, PARTS, Step};
use super::plot::{Curve, Panel, Points, Stroke, averaged};

/// Points of a curve of steps; a panel is no wider.
const FINE: usize = 600;
/// Points of a smoothed curve.
const SMOOTH: usize = 60;

/// The panels of one run, without those that would be empty.
pub fn of_run(run: &History) -> Vec<Panel> {
    let x_label = "optimiser step";
    let place = |step: &Step| step.step as f64;
    let with_smooth = |title: &str, y_label: &str, value: &dyn Fn(&Step) -> f64| {
        let points = series(run, place, value);
        let fine =
            Curve { name: String::new(), colour: 0, stroke: Stroke::Pale, points: averaged(&points, FINE) };
        let smooth = Curve { stroke: Stroke::Line, points: averaged(&points, SMOOTH), ..fine.clone() };
        panel(title, x_label, y_label, vec![fine, smooth])
    };
    let measured = |names: &[String]| -> Vec<Curve> {
        let of_name = |(colour, name): (usize, &String)| Curve {
            name: name.clone(),
            colour,
            stroke: Stroke::Dotted,
            points: evaluations(run, name, |step, _| step as f64),
        };
        names.iter().enumerate().map(of_name).collect()
    };
    let percentages = run.percentages();
    let named = |names: &[&str]| measured(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let lr = Curve {
        name: String::new(),
        colour: 0,
        stroke: Stroke::Line,
        points: averaged(&series(run, place, |step| step.lr), FINE),
    };
    let parts = PARTS.iter().enumerate().map(|(i, (_, name))| Curve {
        name: (*name).to_owned(),
        colour: i,
        stroke: Stroke::Line,
        points: averaged(&series(run, place, |step| step.parts[i]), SMOOTH),
    });
    let monitor = panel("accuracy of the monitor", x_label, "%", measured(&percentages));
    let waiting = with_smooth("waiting for images", "% of a step", &waiting);
    let panels = vec![
        with_smooth("loss", "loss", &|step| step.loss),
        Panel { bounds: Some((0.0, 100.0)), ..monitor },
        panel("learning rate", x_label, "learning rate", vec![lr]),
        with_smooth("throughput", "images/s", &|step| step.images_per_s),
        Panel { bounds: Some((0.0, 100.0)), ..waiting },
        panel("where the time of a step goes", x_label, "ms", parts.collect()),
        panel("effective rank of the bank", x_label, "directions", named(&["effective_rank"])),
        panel("alignment and uniformity", x_label, "", named(&["alignment", "uniformity"])),
        with_smooth("ln Z", "ln Z", &|step| step.ln_z),
    ];
    without_empty(panels)
}

/// The panels of several runs over each other, a colour each, without those that would be empty.
pub fn of_runs(runs: &[History]) -> Vec<Panel> {
    let x_label = "epoch";
    let steps = |title: &str, y_label: &str, value: &dyn Fn(&Step) -> f64| {
        let of_run = |(colour, run): (usize, &History)| Curve {
            name: run.name.clone(),
            colour,
            stroke: Stroke::Line,
            points: averaged(&series(run, |step| step.epochs, value), 2 * SMOOTH),
        };
        panel(title, x_label, y_label, runs.iter().enumerate().map(of_run).collect())
    };
    let measured = |title: &str, y_label: &str, name: &str| {
        let of_run = |(colour, run): (usize, &History)| Curve {
            name: run.name.clone(),
            colour,
            stroke: Stroke::Dotted,
            points: evaluations(run, name, |_, epoch| (epoch + 1) as f64),
        };
        panel(title, x_label, y_label, runs.iter().enumerate().map(of_run).collect())
    };
    let mut names: Vec<String> = Vec::new();
    for name in runs.iter().flat_map(History::percentages) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let bounds = Some((0.0, 100.0));
    let mut panels = vec![steps("loss", "loss", &|step| step.loss)];
    panels.extend(names.iter().map(|name| Panel { bounds, ..measured(name, "%", name) }));
    panels.extend([
        steps("learning rate", "learning rate", &|step| step.lr),
        steps("throughput", "images/s", &|step| step.images_per_s),
        Panel { bounds, ..steps("waiting for images", "% of a step", &waiting) },
        measured("effective rank of the bank", "directions", "effective_rank"),
    ]);
    without_empty(panels)
}

fn waiting(step: &Step) -> f64 {
    100.0 * step.parts[0] / step.ms
}

fn panel(title: &str, x_label: &str, y_label: &str, curves: Vec<Curve>) -> Panel {
    let (title, x_label, y_label) = (title.into(), x_label.into(), y_label.into());
    Panel { title, x_label, y_label, curves, bounds: None }
}

fn without_empty(panels: Vec<Panel>) -> Vec<Panel> {
    let panels = panels.into_iter().map(|mut panel| {
        panel.curves.retain(|curve| !curve.points.is_empty());
        panel
    });
    panels.filter(|panel| !panel.curves.is_empty()).collect()
}

/// What is finite of a value of all steps.
fn series(run: &History, place: impl Fn(&Step) -> f64, value: impl Fn(&Step) -> f64) -> Points {
    run.steps.iter().map(|step| (place(step), value(step))).filter(|point| point.1.is_finite()).collect()
}

/// The values of a measurement against the live bank; `place` is made of optimiser steps and epoch.
fn evaluations(run: &History, name: &str, place: impl Fn(u64, u64) -> f64) -> Points {
    let of_name = run.evaluations.iter().filter(|(_, r)| r.metric == name && r.value.is_finite());
    of_name.map(|(step, record)| (place(*step, record.epoch), record.value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::scratch;
    use crate::report::history::tests::run;

    #[test]
    fn panels_have_what_was_recorded_and_no_more() {
        let (_dir, folder) = scratch();
        let history = History::read(&run(&folder, "epochs = 3\n")).unwrap();
        let titles = |panels: &[Panel]| panels.iter().map(|panel| panel.title.clone()).collect::<Vec<_>>();
        let panels = of_run(&history);
        let expected = [
            "loss",
            "accuracy of the monitor",
            "learning rate",
            "throughput",
            "waiting for images",
            "where the time of a step goes",
            "effective rank of the bank",
        ];
        assert_eq!(titles(&panels), expected);
        let monitor = &panels[1].curves;
        assert_eq!(
            (monitor[0].name.as_str(), &monitor[0].points),
            ("knn_top1", &vec![(4.0, 30.0), (8.0, 29.0)])
        );
        assert_eq!(panels[4].curves[0].points[0], (1.0, 25.0));
        let parts: Vec<_> = panels[5].curves.iter().map(|curve| curve.name.as_str()).collect();
        assert_eq!(parts, ["waiting for images", "forward"]);
        let both = of_runs(&[history.clone(), history]);
        assert_eq!(titles(&both)[..3], ["loss", "knn_top1", "nn_top1"]);
        assert_eq!(both[1].curves[1].points, [(1.0, 30.0), (2.0, 29.0)]);
        assert_eq!(both[0].curves[1].points.last(), Some(&(2.25, 4.5)));
    }
}
