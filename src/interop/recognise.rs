//! Which network a list of named tensors is: one of our residual networks under other people's names, or not.
//!
//! Names are torchvision's, which timm shares, or those of the published CIFAR networks (`shortcut`, `linear`), or the
//! numbers that `nn.Sequential(*resnet.children())` gives; in front of them may be any prefix (`module.`,
//! `encoder_q.`, `backbone.`).

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use crate::model::{Arch, Encoder, EncoderConfig, Family, Head};

/// Names and shapes, in a file's order.
pub type Shapes<'a> = [(&'a str, &'a [usize])];

/// What a file's tensors come to.
#[derive(Clone, Debug, Serialize)]
pub struct Match {
    /// The network.
    pub config: EncoderConfig,
    /// What stands in front of every name.
    pub prefix: String,
    /// Other prefixes under which the file holds such a network.
    pub other_prefixes: Vec<String>,
    /// Our name of each tensor that has a place: its number in the list.
    pub matched: BTreeMap<String, usize>,
    /// How many of them have another name in the file, the prefix apart.
    pub renamed: usize,
    /// Ours that the file has not.
    pub missing: Vec<String>,
    /// Step counters of BatchNorm that the file has not: PyTorch before 0.4.1 kept none, and nothing depends on them.
    pub missing_counters: Vec<String>,
    /// Ours that the file has in another shape.
    pub mismatched: Vec<String>,
    /// Tensors under the prefix that have no place.
    pub left_over: Vec<String>,
    /// Tensors of a head that was not to be taken.
    pub head_left: Vec<String>,
    /// Tensors elsewhere in the file.
    pub outside: Vec<String>,
}

/// How to look.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// The prefix, if it is not to be guessed.
    pub prefix: Option<String>,
    /// Whether to look for a head; both are tried if nothing is said.
    pub head: Option<Head>,
}

impl Match {
    /// Whether every tensor of ours was found, and none under the prefix is left over.
    pub fn complete(&self) -> bool {
        self.missing.is_empty() && self.mismatched.is_empty() && self.left_over.is_empty()
    }

    /// Whether every tensor but those of the head was found.
    pub fn trunk_is_complete(&self) -> bool {
        let head = format!("{}.", self.config.family.head_name());
        self.mismatched.is_empty() && self.missing.iter().all(|name| name.starts_with(&head))
    }
}

/// The network among `tensors`, and such an encoder, newly initialised.
///
/// # Errors
/// If there is none; with what there is instead.
pub fn recognise(tensors: &Shapes<'_>, hints: &Hints) -> Result<(Match, Encoder), String> {
    let (prefix, other_prefixes) = choose_prefix(tensors, hints.prefix.as_deref())?;
    let under: Vec<(String, usize)> = tensors
        .iter()
        .enumerate()
        .filter_map(|(index, (name, _))| Some((torchvision_name(name.strip_prefix(&prefix)?), index)))
        .collect();
    let shape = |name: &str| under.iter().find(|(n, _)| n == name).map(|&(_, index)| tensors[index].1);
    let mut config = network(&under, shape)?;
    config.head = match (shape("fc.weight"), hints.head) {
        (_, Some(Head::None)) | (None, None) => Head::None,
        _ => Head::Linear,
    };
    config.embed_dim = match (config.head, shape("fc.weight")) {
        (Head::Linear, Some(&[d, _])) => d as i64,
        (Head::Linear, _) => 128,
        (Head::None, _) => config.pooled_dim(),
    };
    config.validate().map_err(|error| error.to_string())?;

    let by_our_name: BTreeMap<String, usize> =
        under.into_iter().map(|(name, index)| (our_name(&name, config.family), index)).collect();
    let mut found = Match {
        config,
        other_prefixes,
        matched: BTreeMap::new(),
        renamed: 0,
        missing: Vec::new(),
        missing_counters: Vec::new(),
        mismatched: Vec::new(),
        left_over: Vec::new(),
        head_left: Vec::new(),
        outside: Vec::new(),
        prefix,
    };
    let encoder = Encoder::new(config, 0, tch::Device::Cpu);
    for entry in encoder.parameters().state() {
        let expected: Vec<usize> = entry.tensor.size().iter().map(|&extent| extent as usize).collect();
        match by_our_name.get(&entry.name) {
            Some(&index) if tensors[index].1 == expected => {
                found.renamed +=
                    usize::from(tensors[index].0.strip_prefix(&found.prefix) != Some(&entry.name));
                found.matched.insert(entry.name.clone(), index);
            }
            // A counter is a number, however it is wrapped.
            Some(&index) if entry.name.ends_with("num_batches_tracked") && tensors[index].1 == [1] => {
                found.matched.insert(entry.name.clone(), index);
            }
            Some(&index) => found.mismatched.push(format!(
                "{}: {:?}, where a {} of width {} has {expected:?}",
                tensors[index].0, tensors[index].1, config.arch, config.width
            )),
            None if entry.name.ends_with("num_batches_tracked") => {
                found.missing_counters.push(entry.name.clone());
            }
            None => found.missing.push(entry.name.clone()),
        }
    }
    for (our_name, &index) in &by_our_name {
        let known = found.matched.contains_key(our_name)
            || found.mismatched.iter().any(|line| line.starts_with(&format!("{}: ", tensors[index].0)));
        if known {
            continue;
        }
        let of_head = hints.head == Some(Head::None)
            && (our_name.starts_with("fc.") || our_name.starts_with(config.family.head_name()));
        let list = if of_head { &mut found.head_left } else { &mut found.left_over };
        list.push(describe(tensors[index]));
    }
    let outside = tensors.iter().filter(|(name, _)| !name.starts_with(&found.prefix));
    found.outside = outside.map(|&tensor| describe(tensor)).collect();
    Ok((found, encoder))
}

fn describe((name, shape): (&str, &[usize])) -> String {
    format!("{name} {shape:?}")
}

/// The prefix of the network to take, and of others like it.
fn choose_prefix(tensors: &Shapes<'_>, given: Option<&str>) -> Result<(String, Vec<String>), String> {
    let names: HashSet<&str> = tensors.iter().map(|(name, _)| *name).collect();
    let has = |name: &str| names.contains(name);
    let mut prefixes: Vec<&str> = tensors
        .iter()
        .filter(|(_, shape)| matches!(shape, [_, 3, _, _]))
        .filter_map(|(name, _)| {
            let by_name =
                name.strip_suffix("conv1.weight").filter(|p| has(&format!("{p}layer1.0.conv1.weight")));
            by_name.or_else(|| name.strip_suffix("0.weight").filter(|p| has(&format!("{p}4.0.conv1.weight"))))
        })
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .collect();
    if let Some(given) = given {
        let with_dot = format!("{}.", given.trim_end_matches('.'));
        let wanted = if given.is_empty() { "" } else { &with_dot };
        return match prefixes.iter().position(|prefix| *prefix == wanted) {
            Some(at) => {
                let chosen = prefixes.remove(at).to_owned();
                Ok((chosen, prefixes.into_iter().map(str::to_owned).collect()))
            }
            None if prefixes.is_empty() => Err(no_network(tensors)),
            None => Err(format!("no network under `{given}`, but under `{}`", prefixes.join("`, `"))),
        };
    }
    // The encoder that follows another one slowly is not the one that was trained.
    let follower = |prefix: &&str| {
        ["encoder_k", "momentum", "teacher", "target", "ema"].iter().any(|word| prefix.contains(word))
    };
    prefixes.sort_by_key(follower);
    let mut prefixes = prefixes.into_iter().map(str::to_owned);
    let first = prefixes.next().ok_or_else(|| no_network(tensors))?;
    Ok((first, prefixes.collect()))
}

fn no_network(tensors: &Shapes<'_>) -> String {
    if tensors.is_empty() {
        return "no weights of a network".into();
    }
    if let Some((name, _)) = tensors.iter().find(|(name, _)| name.ends_with("conv1.0.weight")) {
        return format!("a network with a deep stem (`{name}`), where ours have one convolution");
    }
    let names: Vec<_> = tensors.iter().take(5).map(|&tensor| describe(tensor)).collect();
    format!(
        "{} tensors but no residual network, which would have a `conv1.weight` [C, 3, k, k] beside a \
         `layer1.0.conv1.weight`; they begin with {}",
        tensors.len(),
        names.join(", ")
    )
}

/// torchvision's name for one without prefix.
fn torchvision_name(name: &str) -> String {
    // `nn.Sequential(*resnet.children())` numbers: conv1, bn1, ReLU, pooling, layer1 to layer4, pooling, fc.
    const CHILDREN: [(&str, &str); 7] = [
        ("0.", "conv1."),
        ("1.", "bn1."),
        ("4.", "layer1."),
        ("5.", "layer2."),
        ("6.", "layer3."),
        ("7.", "layer4."),
        ("9.", "fc."),
    ];
    let numbered =
        CHILDREN.iter().find_map(|(number, child)| Some(format!("{child}{}", name.strip_prefix(number)?)));
    let name = numbered.unwrap_or_else(|| name.to_owned()).replace(".shortcut.", ".downsample.");
    match name.strip_prefix("linear.") {
        Some(rest) => format!("fc.{rest}"),
        None => name,
    }
}

/// The name that a network of `family` has for torchvision's.
fn our_name(name: &str, family: Family) -> String {
    let name = name.replace(".downsample.", &format!(".{}.", family.shortcut_name()));
    match name.strip_prefix("fc.") {
        // Only a single layer is a head; `fc.0.weight` is one of several.
        Some(part @ ("weight" | "bias")) => format!("{}.{part}", family.head_name()),
        _ => name,
    }
}

/// Depth, stem and width, by torchvision's names.
fn network<'a>(
    names: &[(String, usize)],
    shape: impl Fn(&str) -> Option<&'a [usize]>,
) -> Result<EncoderConfig, String> {
    let (width, family) = match shape("conv1.weight") {
        Some(&[width, 3, 7, 7]) => (width, Family::ImageNet),
        Some(&[width, 3, 3, 3]) => (width, Family::Cifar),
        Some(other) => {
            return Err(format!("a first convolution of {other:?}; ours are 7×7 or 3×3 on 3 channels"));
        }
        None => return Err("no first convolution".into()),
    };
    let blocks = |stage: usize| {
        let prefix = format!("layer{stage}.");
        let numbers =
            names.iter().filter_map(|(name, _)| name.strip_prefix(&prefix)?.split_once('.')?.0.parse().ok());
        numbers.max().map_or(0, |last: usize| last.saturating_add(1))
    };
    let depths: Vec<usize> = (1..=5).map(blocks).collect();
    let bottleneck = shape("layer1.0.conv3.weight").is_some();
    let arch = Arch::ALL
        .into_iter()
        .find(|arch| arch.bottleneck() == bottleneck && depths[..4] == arch.blocks() && depths[4] == 0)
        .ok_or_else(|| {
            let stages: Vec<_> = depths.iter().filter(|&&n| n > 0).map(usize::to_string).collect();
            let kind = if bottleneck { "bottleneck" } else { "basic" };
            format!(
                "a residual network of {} stages with {} {kind} blocks, first convolution {width} channels; ours have four \
                 stages: resnet18 2, 2, 2, 2 and resnet34 3, 4, 6, 3 basic blocks; resnet50 3, 4, 6, 3, resnet101 \
                 3, 4, 23, 3 and resnet152 3, 8, 36, 3 bottlenecks",
                stages.len(),
                stages.join(", ")
            )
        })?;
    // This one is the largest of its kind, so that a small file cannot ask for a large network; and it tells wide and
    // grouped networks (Wide ResNet, ResNeXt) from ours.
    let (name, wide) = ("layer4.0.conv2.weight", width.saturating_mul(8));
    match shape(name) {
        Some(&[a, b, 3, 3]) if (a, b) == (wide, wide) => {}
        Some(found) => {
            return Err(format!(
                "{name} of {found:?}, where a {arch} of width {width} has [{wide}, {wide}, 3, 3]: perhaps a wide or a \
                 grouped network"
            ));
        }
        None => return Err(format!("no {name}")),
    }
    Ok(EncoderConfig { width: width as i64, ..EncoderConfig::new(arch, family) })
}
