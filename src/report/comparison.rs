//! Runs beside each other: the settings that differ, and what came of them, as a table for pages and terminals.

use super::history::History;
use super::machine::gibibytes;

/// A table with a column for each run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What it shows.
    pub title: &'static str,
    /// Names of rows, and a cell for each run.
    pub rows: Vec<(String, Vec<String>)>,
}

/// What stands where a run has nothing to say.
const NOTHING: &str = "-";

/// Settings in which the runs differ, by name.
pub fn differing_settings(runs: &[History]) -> Table {
    let flat: Vec<Vec<(String, String)>> = runs.iter().map(|run| flattened(&run.settings)).collect();
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in flat.iter().flatten() {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let value = |settings: &[(String, String)], key: &str| {
        settings.iter().find(|(name, _)| name == key).map_or(NOTHING.to_owned(), |(_, value)| value.clone())
    };
    let rows =
        keys.into_iter().map(|key| (key.clone(), flat.iter().map(|settings| value(settings, key)).collect()));
    let mut rows: Vec<(String, Vec<String>)> = rows.collect();
    rows.retain(|(_, cells)| cells.iter().any(|cell| *cell != cells[0]));
    rows.sort();
    Table { title: "settings that differ", rows }
}

/// What the runs came to.
pub fn results(runs: &[History]) -> Table {
    let row = |name: &str, cell: &dyn Fn(&History) -> Option<String>| {
        (name.to_owned(), runs.iter().map(|run| cell(run).unwrap_or(NOTHING.to_owned())).collect())
    };
    let measured = |run: &History, name: &str| {
        let mut values = run.evaluations.iter().rev().filter(|(_, record)| record.metric == name);
        values.next().map(|(_, record)| record.value).filter(|value| value.is_finite())
    };
    let mut rows = vec![
        row("epochs", &|run| {
            let done = run.steps.last()?.epochs;
            Some(run.epochs().map_or(format!("{done:.1}"), |all| format!("{done:.1} of {all}")))
        }),
        row("optimiser steps", &|run| Some(run.steps.last()?.step.to_string())),
        row("loss, mean of the last 100 steps", &|run| Some(format!("{:.4}", run.last_loss()?))),
        row("monitor", &|run| Some(run.monitor()?.0)),
        row("monitor, last, %", &|run| Some(format!("{:.2}", run.monitor()?.1))),
        row("monitor, best, % (after epoch)", &|run| {
            let (_, _, best, epoch) = run.monitor()?;
            Some(format!("{best:.2} ({})", epoch + 1))
        }),
        row("best tested, top-1 %", &|run| best_test(run)),
        row("effective rank of the bank", &|run| Some(format!("{:.1}", measured(run, "effective_rank")?))),
        row("images/s, median", &|run| Some(format!("{:.1}", run.images_per_s()?))),
        row("waiting for images, % of the time", &|run| {
            run.steps.last().map(|_| format!("{:.0}", 100.0 * run.shares()[0]))
        }),
        row("hours of training", &|run| Some(format!("{:.2}", run.hours()))),
        row("processor", &|run| Some(run.machines.last()?.cpu.clone())),
        row("cores; memory", &|run| {
            let machine = run.machines.last()?;
            Some(format!("{}; {}", machine.cores, machine.memory_bytes.map_or(NOTHING.into(), gibibytes)))
        }),
        row("device, precision", &|run| {
            let machine = run.machines.last()?;
            Some(format!("{}, {}", machine.device, machine.precision))
        }),
    ];
    rows.retain(|(_, cells): &(String, Vec<String>)| cells.iter().any(|cell| cell != NOTHING));
    Table { title: "results", rows }
}

/// Whether the runs were on the same images; none where a run does not say.
pub fn same_data(runs: &[History]) -> Option<bool> {
    let prints: Option<Vec<&str>> = runs.iter().map(|run| run.manifest["fingerprint"].as_str()).collect();
    prints.map(|prints| prints.iter().all(|print| *print == prints[0]))
}

/// The best top-1 of `evaluations.jsonl`, with what it was.
fn best_test(run: &History) -> Option<String> {
    let tests = run
        .tests
        .iter()
        .filter_map(|test| Some((test["knn"]["top1"].as_f64()?, &test["knn"], &test["epoch"])));
    let (top1, knn, epoch) = tests.reduce(|best, other| if other.0 > best.0 { other } else { best })?;
    let bank = knn["bank"].as_str().unwrap_or(NOTHING);
    Some(format!("{:.2} (kNN, k = {}, {bank} bank, after {epoch} epochs)", 100.0 * top1, knn["k"]))
}

/// `key` or `table.key`, and the value as TOML.
pub fn flattened(settings: &toml::Table) -> Vec<(String, String)> {
    let mut flat = Vec::new();
    for (key, value) in settings {
        match value {
            toml::Value::Table(inner) => {
                flat.extend(
                    flattened(inner).into_iter().map(|(name, value)| (format!("{key}.{name}"), value)),
                );
            }
            toml::Value::String(text) => flat.push((key.clone(), text.clone())),
            other => flat.push((key.clone(), other.to_string())),
        }
    }
    flat
}

impl Table {
    /// The table in columns for a terminal or a file; `names` head the columns of the runs.
    pub fn to_text(&self, names: &[&str]) -> String {
        let title =
            std::iter::once((self.title, names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()));
        let rows: Vec<(&str, Vec<String>)> =
            title.chain(self.rows.iter().map(|(name, cells)| (name.as_str(), cells.clone()))).collect();
        let width = |cell: &str| cell.chars().count();
        let first = rows.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
        let widths: Vec<usize> = (0..names.len())
            .map(|i| {
                rows.iter().map(|(_, cells)| cells.get(i).map_or(0, |cell| width(cell))).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for (name, cells) in rows {
            let mut line = format!("{name:<first$}");
            for (cell, width) in cells.iter().zip(&widths) {
                line += &format!("  {cell:<width$}");
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::scratch;
    use crate::report::history::tests::run;

    #[test]
    fn what_differs_is_listed_and_what_does_not_is_not() {
        let (_dir, folder) = scratch();
        let a = run(&folder.join("1"), "epochs = 3\nlr = 0.03\n[augmentation]\nflip = 0.5\n");
        let b = run(&folder.join("2"), "epochs = 3\nlr = 0.1\nmax-steps = 9\n[augmentation]\nflip = 0.0\n");
        let runs = [History::read(&a).unwrap(), History::read(&b).unwrap()];
        let table = differing_settings(&runs);
        let rows: Vec<_> =
            table.rows.iter().map(|(key, cells)| format!("{key} {}", cells.join(" "))).collect();
        assert_eq!(rows, ["augmentation.flip 0.5 0.0", "lr 0.03 0.1", "max-steps - 9"]);
        let text = table.to_text(&["a", "run b"]);
        let expected = "settings that differ  a     run b\naugmentation.flip     0.5   0.0\n\
                        lr                    0.03  0.1\nmax-steps             -     9\n";
        assert_eq!(text, expected);
        assert_eq!(same_data(&runs), None);
    }

    #[test]
    fn results_are_numbers_of_the_run() {
        let (_dir, folder) = scratch();
        let path = run(&folder, "epochs = 3\n");
        let line = r#"{"epoch":2,"knn":{"k":200,"bank":"live","top1":0.281}}"#;
        std::fs::write(path.join("evaluations.jsonl"), format!("{line}\n{{\"other\":1}}\nnonsense\n"))
            .unwrap();
        let text = results(&[History::read(&path).unwrap()]).to_text(&["run"]);
        for part in [
            "epochs                             2.2 of 3",
            "optimiser steps                    9",
            "monitor, best, % (after epoch)     30.00 (1)",
            "28.10 (kNN, k = 200, live bank, after 2 epochs)",
            "waiting for images, % of the time  25",
            "processor                          Some CPU",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }
}
