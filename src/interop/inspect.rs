//! What a file holds, as a tree: keys, tensors with shapes, types and sizes, plain values; nothing of it run.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::import::{ImportReport, examine};
use super::recognise::Hints;
use super::source::{Kind, Source, kind};
use super::torch::{Checkpoint, Tensor, TorchFile};
use crate::checkpoint::format;
use crate::data::packed;
use crate::error::{Error, Result};
use crate::pickle::{Id, Value};

/// Deeper nests and longer trees are cut, with a word that says so: a file may be made to have no end.
const MAX_DEPTH: usize = 40;
const MAX_NODES: usize = 100_000;
/// Characters of a text, and plain items of a list, that are shown.
const MAX_TEXT: usize = 200;
const MAX_ITEMS: usize = 8;

/// A file's description.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// Where it lies.
    pub file: String,
    /// Bytes.
    pub size: u64,
    /// Kind and version.
    pub format: String,
    /// Text beside the tensors, where the format has any.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// What it holds.
    pub content: Node,
    /// What an import would make of it, or why there is none. Nothing for a checkpoint of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<Result<ImportReport, String>>,
}

/// One value of a file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Node {
    /// A tensor.
    Tensor {
        /// PyTorch's name of the type.
        dtype: String,
        /// Extents.
        shape: Vec<usize>,
        /// Bytes of its elements.
        bytes: usize,
        /// Whether it is a parameter, a view that skips elements, or shares memory with one before.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        traits: Vec<&'static str>,
        /// Its number, if it is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<f64>,
    },
    /// Keys with values: a dictionary, or an object's attributes.
    Tree {
        /// `dict`, or the class that the object would have had.
        class: String,
        /// In the file's order.
        entries: Vec<(String, Node)>,
    },
    /// A plain value as Python would show it.
    Value {
        /// The text.
        text: String,
    },
}

/// Describes the file at `path`: weights, or a packed data set.
///
/// # Errors
/// If it cannot be read, is damaged, or of a kind that is refused.
pub fn inspect(path: &Path, hints: Hints) -> Result<Inspection> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?.len();
    let file = path.display().to_string();
    if packed::detect(path) {
        return inspect_packed(path, file, size);
    }
    if !path.is_dir() && kind(path)? == Kind::Ours {
        return inspect_ours(path, file, size);
    }
    let source = Source::open(path)?;
    let (content, metadata) = match &source {
        Source::Torch(torch) => (Walk::of(torch)?, BTreeMap::new()),
        Source::Safetensors { map, .. } => {
            let metadata = safetensors::SafeTensors::read_metadata(map)
                .map_err(|e| Error::format(path, "an intact safetensors file", e.to_string()))?
                .1
                .metadata()
                .clone();
            let entries = source.with_contents(|contents| {
                let node = |(name, tensor): (String, Tensor<'_>)| (name, tensor_node(&tensor, Vec::new()));
                Ok(contents.weights.into_iter().map(node).collect())
            })?;
            (
                Node::Tree { class: "tensors".into(), entries },
                metadata.unwrap_or_default().into_iter().collect(),
            )
        }
    };
    let import = examine(&source, hints).map_err(|error| error.to_string());
    Ok(Inspection { file, size, format: source.describe(), metadata, content, import: Some(import) })
}

fn inspect_ours(path: &Path, file: String, size: u64) -> Result<Inspection> {
    let checkpoint = format::Checkpoint::open(path)?;
    let entries = checkpoint
        .tensors()
        .map(|tensor| {
            let node = Node::Tensor {
                dtype: format!("{:?}", tensor.dtype).to_lowercase(),
                shape: tensor.shape.clone(),
                bytes: tensor.bytes.len(),
                traits: Vec::new(),
                value: None,
            };
            (tensor.name.into_owned(), node)
        })
        .collect();
    Ok(Inspection {
        file,
        size,
        format: format!("{} {} (safetensors, every byte verified)", format::FORMAT, format::VERSION),
        metadata: checkpoint.metadata().clone(),
        content: Node::Tree { class: "tensors".into(), entries },
        import: None,
    })
}

fn inspect_packed(path: &Path, file: String, size: u64) -> Result<Inspection> {
    let packed::Summary { about, image_bytes, unreadable } = packed::summary(path)?;
    let value = |text: String| Node::Value { text };
    let split = |(split, unreadable): (packed::format::SplitAbout, usize)| {
        let entries = vec![
            ("images".into(), value(split.images.to_string())),
            ("labels".into(), value(if split.labelled { "yes".into() } else { "none".into() })),
            ("unreadable when packed".into(), value(unreadable.to_string())),
        ];
        (split.name, Node::Tree { class: "split".into(), entries })
    };
    let mut entries = vec![
        ("images are".into(), value(about.form.to_string())),
        ("packed from".into(), value(about.source)),
        ("bytes of images".into(), value(human(image_bytes))),
        ("classes".into(), value(about.classes.len().to_string())),
    ];
    entries.extend(about.splits.into_iter().zip(unreadable).map(split));
    Ok(Inspection {
        file,
        size,
        format: format!("packed data set {} (index verified, images not)", packed::format::VERSION),
        metadata: BTreeMap::new(),
        content: Node::Tree { class: "packed data set".into(), entries },
        import: None,
    })
}

/// A walk through a pickle.
struct Walk<'c, 'a> {
    checkpoint: &'c Checkpoint<'a>,
    /// Storages that were seen.
    storages: HashSet<usize>,
    nodes: usize,
}

impl Walk<'_, '_> {
    fn of(file: &TorchFile) -> Result<Node> {
        let checkpoint = file.read()?;
        let mut walk = Walk { checkpoint: &checkpoint, storages: HashSet::new(), nodes: 0 };
        Ok(walk.node(checkpoint.root(), 0))
    }

    fn node(&mut self, id: Id, depth: usize) -> Node {
        let pickle = self.checkpoint.pickle();
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            return Node::Value {
                text: format!("{} (not shown: too deep or too much)", pickle.describe(id)),
            };
        }
        match self.checkpoint.tensor(id) {
            Ok(Some(tensor)) => {
                let mut traits = Vec::new();
                if tensor.is_parameter() {
                    traits.push("parameter");
                }
                if !tensor.is_contiguous() {
                    traits.push("strided");
                }
                if tensor.numel() > 0 && !self.storages.insert(tensor.storage_address()) {
                    traits.push("shared memory");
                }
                return tensor_node(&tensor, traits);
            }
            Err(reason) => return Node::Value { text: reason },
            Ok(None) => {}
        }
        if let Some(entries) = pickle.entries(id) {
            let class = match pickle.class(id) {
                Some(class) => class.name.to_owned(),
                None => "dict".into(),
            };
            return Node::Tree { class, entries: self.entries(&entries, depth) };
        }
        if let Some(attributes) = pickle.attributes(id) {
            let class = self.checkpoint.class(id).map_or_else(|| "object".to_owned(), |c| format!("{c:.80}"));
            return Node::Tree { class, entries: self.entries(attributes, depth) };
        }
        // Long lists count for more, in case they are met again and again.
        self.nodes += pickle.items(id).map_or(0, <[Id]>::len) / 64;
        match pickle.items(id) {
            Some(items) if !items.iter().all(|&item| self.is_scalar(item)) => {
                let mut entries = Vec::new();
                for (i, &item) in items.iter().enumerate() {
                    if self.nodes > MAX_NODES {
                        entries.push(too_much());
                        break;
                    }
                    entries.push((i.to_string(), self.node(item, depth + 1)));
                }
                let class = if matches!(pickle.get(id), Value::Tuple(_)) { "tuple" } else { "list" };
                Node::Tree { class: class.into(), entries }
            }
            _ => Node::Value { text: self.plain(id).unwrap_or_else(|| pickle.describe(id)) },
        }
    }

    fn entries(&mut self, entries: &[(Id, Id)], depth: usize) -> Vec<(String, Node)> {
        let mut nodes = Vec::new();
        for &(key, value) in entries {
            if self.nodes > MAX_NODES {
                nodes.push(too_much());
                break;
            }
            let pickle = self.checkpoint.pickle();
            let name = match pickle.text(key) {
                Some(text) => shortened(&text),
                None => self.plain(key).unwrap_or_else(|| pickle.describe(key)),
            };
            nodes.push((name, self.node(value, depth + 1)));
        }
        nodes
    }

    /// A value that is shown on one line.
    fn plain(&self, id: Id) -> Option<String> {
        let pickle = self.checkpoint.pickle();
        Some(match pickle.get(id) {
            Value::None => "None".into(),
            Value::Bool(true) => "True".into(),
            Value::Bool(false) => "False".into(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => format!("{value:?}"),
            Value::Str(_) | Value::OldStr(_) => format!("{:?}", shortened(&pickle.text(id)?)),
            Value::List(items) => format!("[{}]", self.plain_items(items)?),
            Value::Tuple(items) => format!("({})", self.plain_items(items)?),
            _ => return None,
        })
    }

    fn is_scalar(&self, id: Id) -> bool {
        matches!(
            self.checkpoint.pickle().get(id),
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) | Value::OldStr(_)
        )
    }

    fn plain_items(&self, items: &[Id]) -> Option<String> {
        if !items.iter().all(|&item| self.is_scalar(item)) {
            return None;
        }
        let shown: Vec<String> =
            items.iter().take(MAX_ITEMS).map(|&item| self.plain(item)).collect::<Option<_>>()?;
        let more = items.len().saturating_sub(MAX_ITEMS);
        let more = if more > 0 { format!(", ... {more} more") } else { String::new() };
        Some(shown.join(", ") + &more)
    }
}

fn tensor_node(tensor: &Tensor<'_>, traits: Vec<&'static str>) -> Node {
    let value = (tensor.numel() == 1)
        .then(|| tensor.to_tch().ok().map(|tensor| tensor.to_kind(tch::Kind::Double).double_value(&[])))
        .flatten()
        .filter(|value| value.is_finite());
    Node::Tensor {
        dtype: tensor.dtype().to_string(),
        shape: tensor.shape().to_vec(),
        bytes: tensor.n_bytes(),
        traits,
        value,
    }
}

/// What stands for the rest of a list or dictionary.
fn too_much() -> (String, Node) {
    ("...".into(), Node::Value { text: "not shown: too much".into() })
}

/// A text without control characters, and not too long.
fn shortened(text: &str) -> String {
    let clean = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => text[..end].chars().map(clean).chain("...".chars()).collect(),
        None => text.chars().map(clean).collect(),
    }
}

impl Inspection {
    /// The tree as text, two spaces for each level.
    pub fn tree(&self) -> String {
        let mut out = String::new();
        print(&mut out, &self.content, 0);
        out
    }
}

fn print(out: &mut String, node: &Node, indent: usize) {
    let Node::Tree { entries, .. } = node else {
        let _ = writeln!(out, "{:indent$}{}", "", line(node));
        return;
    };
    let width = entries.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0).min(48);
    for (key, value) in entries {
        let _ = writeln!(out, "{:indent$}{key:width$}  {}", "", line(value));
        if matches!(value, Node::Tree { .. }) {
            print(out, value, indent + 2);
        }
    }
}

/// A node on one line; of a tree only what it is.
fn line(node: &Node) -> String {
    match node {
        Node::Value { text } => text.replace('\n', "\\n"),
        Node::Tree { class, entries } => format!("{class} of {}", entries.len()),
        Node::Tensor { dtype, shape, bytes, traits, value } => {
            let value = value.map(|value| format!(" = {value}")).unwrap_or_default();
            let traits = traits.iter().map(|name| format!(", {name}")).collect::<String>();
            format!("{dtype} {shape:?}{value}  {}{traits}", human(*bytes as u64))
        }
    }
}

/// A size in bytes as a person reads it.
pub fn human(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
