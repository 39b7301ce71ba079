//! What a file of another program holds, sorted into the parts we know: weights, memory bank, optimiser, counters.
//!
//! Layouts differ in little but their keys: the published ImageNet script writes `epoch, arch, state_dict, lemniscate,
//! best_prec1, optimizer`, its CIFAR script `net, lemniscate, acc, epoch`; others a bare state dict, a whole module, or
//! a dictionary of their own.

use std::collections::HashMap;

use crate::pickle::{Id, Value};

use super::torch::{Checkpoint, Tensor};

/// Tensors by the names they have in the file, in its order.
pub type Named<'a> = Vec<(String, Tensor<'a>)>;

/// Where dictionaries keep the weights, the likelier places first.
const WEIGHTS: [&str; 10] = [
    "state_dict",
    "net",
    "model",
    "model_state_dict",
    "module",
    "encoder",
    "network",
    "backbone",
    "teacher",
    "student",
];
const BANK: &str = "lemniscate";
const OPTIMIZER: [&str; 3] = ["optimizer", "optimizer_state_dict", "optim"];
/// More entries than any dictionary has beside its plain values, more groups and parameters than any optimiser: a file
/// that refers to the same things again and again must not keep us looking at them.
const MAX_ENTRIES: usize = 256;
const MAX_GROUPS: usize = 1024;
const MAX_PARAMETERS: usize = 1 << 16;
const BEST: [&str; 4] = ["best_prec1", "acc", "best_acc1", "best_acc"];

/// A file's parts.
#[derive(Debug, Default)]
pub struct Contents<'a> {
    /// How the parts lie in the file, for a person: `a dictionary of epoch, arch, state_dict`.
    pub layout: String,
    /// The network's tensors.
    pub weights: Named<'a>,
    /// The memory bank.
    pub bank: Option<Bank<'a>>,
    /// SGD's state.
    pub optimizer: Option<Optimizer<'a>>,
    /// Epochs finished.
    pub epoch: Option<u64>,
    /// What the file says the network is.
    pub arch: Option<String>,
    /// The best accuracy so far, per cent.
    pub best: Option<f64>,
    /// Other entries that hold tensors, with their number.
    pub others: Vec<(String, usize)>,
}

/// A pickled memory bank.
#[derive(Debug)]
pub struct Bank<'a> {
    /// The class it had: `lib.NCEAverage.NCEAverage`.
    pub class: String,
    /// The rows `[N, D]`.
    pub memory: Tensor<'a>,
    /// `[K, T, Z, m]`, or `[T, m]` with the full softmax.
    pub params: Vec<f64>,
    /// Whether K samples stand in a softmax, not in NCE (the updated model of 2020).
    pub softmax: bool,
}

/// SGD as PyTorch stores it.
#[derive(Debug)]
pub struct Optimizer<'a> {
    /// One buffer for each parameter, in the network's order; a parameter that was never stepped has none.
    pub momentum: Vec<Option<Tensor<'a>>>,
    /// Number of parameter groups; their order is the network's only if there is one.
    pub groups: usize,
    /// The first group's learning rate, that of the last epoch.
    pub lr: Option<f64>,
    /// The first group's learning rate before any schedule, where the file keeps it.
    pub initial_lr: Option<f64>,
    /// The first group's momentum.
    pub momentum_factor: Option<f64>,
    /// The first group's weight decay.
    pub weight_decay: Option<f64>,
}

impl<'a> Contents<'a> {
    /// Sorts what `file` holds.
    ///
    /// # Errors
    /// If a tensor of a part that we know cannot be read; in words that say which and what was found.
    pub fn of(file: &Checkpoint<'a>) -> Result<Self, String> {
        let (pickle, root) = (file.pickle(), file.root());
        let Some(entries) = pickle.entries(root) else {
            let tensors = file.named_tensors(root)?;
            let class = file.class(root).map_or_else(|| pickle.describe(root), |class| class.to_string());
            let layout = format!("a pickled module of class {class:.80}");
            return Ok(match bank(file, root)? {
                Some(bank) => Contents { layout, bank: Some(bank), ..Self::default() },
                None => Contents { layout, weights: tensors, ..Self::default() },
            });
        };
        let direct = file.named_tensors(root)?;
        let entry = |keys: &[&str]| keys.iter().find_map(|key| pickle.entry(root, key));
        let mut groups = Vec::new();
        let mut looked_into = 0;
        for &(key, value) in entries.iter() {
            let Some(key) = pickle.text(key) else { continue };
            let plain = pickle.entries(value).is_none() && pickle.object(value).is_none();
            let tensor = matches!(file.tensor(value), Ok(Some(_)));
            if key == BANK || OPTIMIZER.contains(&&*key) || plain || tensor {
                continue;
            }
            looked_into += 1;
            if looked_into > MAX_ENTRIES {
                break;
            }
            let tensors = file.named_tensors(value)?;
            if !tensors.is_empty() {
                groups.push((key.into_owned(), tensors));
            }
        }
        let preferred = WEIGHTS.iter().find_map(|&key| groups.iter().position(|(name, _)| name == key));
        let largest = || {
            let count = |&i: &usize| groups[i].1.len();
            (0..groups.len()).max_by_key(count).filter(|i| count(i) > direct.len())
        };
        let (weights, layout) = match preferred.or_else(largest) {
            Some(chosen) => {
                let (name, tensors) = groups.remove(chosen);
                (tensors, format!("{}, the weights under `{name}`", keys(file, &entries)))
            }
            None => (direct, "a state dict".to_owned()),
        };
        let integer = |id| number(file, id).filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64);
        // The CIFAR script stores the index of the epoch that has ended, the other one their number.
        let finished = |epoch: u64| epoch + u64::from(pickle.entry(root, "net").is_some());
        Ok(Contents {
            layout,
            weights,
            bank: entry(&[BANK]).map(|id| bank(file, id)).transpose()?.flatten(),
            optimizer: entry(&OPTIMIZER).map(|id| optimizer(file, id)).transpose()?.flatten(),
            epoch: entry(&["epoch"]).and_then(integer).map(finished),
            arch: entry(&["arch"]).and_then(|id| pickle.text(id)).map(|text| text.into_owned()),
            // Fractions and per cents are both in use; nobody keeps a network of less than one per cent.
            best: entry(&BEST)
                .and_then(|id| number(file, id))
                .filter(|best| (0.0..=100.0).contains(best))
                .map(|best| if best <= 1.0 { 100.0 * best } else { best }),
            others: groups.into_iter().map(|(name, tensors)| (name, tensors.len())).collect(),
        })
    }
}

/// `a dictionary of epoch, arch, state_dict`.
fn keys(file: &Checkpoint<'_>, entries: &[(Id, Id)]) -> String {
    const SHOWN: usize = 12;
    let mut names: Vec<_> = entries
        .iter()
        .filter_map(|&(key, _)| file.pickle().text(key))
        .map(|key| format!("{key:.40}"))
        .collect();
    if names.len() > SHOWN {
        names.truncate(SHOWN);
        names.push("...".into());
    }
    format!("a dictionary of {}", names.join(", "))
}

/// A number, or a tensor of one.
fn number(file: &Checkpoint<'_>, id: Id) -> Option<f64> {
    match *file.pickle().get(id) {
        Value::Int(value) => Some(value as f64),
        Value::Float(value) => Some(value),
        _ => match &numbers(&file.tensor(id).ok()??)?[..] {
            &[value] => Some(value),
            _ => None,
        },
    }
}

/// The numbers in a small tensor.
fn numbers(tensor: &Tensor<'_>) -> Option<Vec<f64>> {
    const SMALL: usize = 64;
    let tensor = (tensor.numel() <= SMALL).then(|| tensor.to_tch().ok())??;
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.to_kind(tch::Kind::Double).contiguous().copy_data(&mut values, count);
    Some(values)
}

/// The memory bank at `id`: a module, whatever its class, with the buffers `memory` and `params`.
fn bank<'a>(file: &Checkpoint<'a>, id: Id) -> Result<Option<Bank<'a>>, String> {
    let mut tensors: HashMap<_, _> = file.named_tensors(id)?.into_iter().collect();
    // Data parallelism may have wrapped it.
    let mut take = |name: &str| tensors.remove(name).or_else(|| tensors.remove(&format!("module.{name}")));
    let (Some(memory), Some(params)) = (take("memory"), take("params")) else { return Ok(None) };
    let params = numbers(&params).ok_or_else(|| format!("bank parameters of shape {:?}", params.shape()))?;
    let flag = file.pickle().attribute(id, "use_softmax").map(|flag| file.pickle().get(flag));
    let class = file.class(id).map_or_else(|| "a dictionary".to_owned(), |class| format!("{class:.80}"));
    Ok(Some(Bank { class, memory, params, softmax: flag == Some(&Value::Bool(true)) }))
}

fn optimizer<'a>(file: &Checkpoint<'a>, id: Id) -> Result<Option<Optimizer<'a>>, String> {
    let pickle = file.pickle();
    let (Some(state), Some(groups)) = (pickle.entry(id, "state"), pickle.entry(id, "param_groups")) else {
        return Ok(None);
    };
    let (Some(state), Some(groups)) = (pickle.entries(state), pickle.items(groups)) else { return Ok(None) };
    if groups.len() > MAX_GROUPS {
        return Err(format!("an optimiser of {} parameter groups", groups.len()));
    }
    // Parameters are numbered; before PyTorch 1.6 they went by their address in memory.
    let by_key: HashMap<i64, Id> =
        state.iter().filter_map(|&(key, value)| Some((pickle.int(key)?, value))).collect();
    let mut momentum = Vec::new();
    for &group in groups {
        let parameters = pickle.entry(group, "params").and_then(|id| pickle.items(id)).unwrap_or_default();
        for &parameter in parameters {
            let buffer = pickle
                .int(parameter)
                .and_then(|key| by_key.get(&key))
                .and_then(|&state| pickle.entry(state, "momentum_buffer"));
            let tensor = buffer.map(|id| file.tensor(id)).transpose();
            let tensor =
                tensor.map_err(|reason| format!("momentum of parameter {}: {reason}", momentum.len()))?;
            momentum.push(tensor.flatten());
            if momentum.len() > MAX_PARAMETERS {
                return Err(format!("an optimiser of more than {MAX_PARAMETERS} parameters"));
            }
        }
    }
    let of_group = |key: &str| number(file, pickle.entry(*groups.first()?, key)?);
    Ok(Some(Optimizer {
        momentum,
        groups: groups.len(),
        lr: of_group("lr"),
        initial_lr: of_group("initial_lr"),
        momentum_factor: of_group("momentum"),
        weight_decay: of_group("weight_decay"),
    }))
}
