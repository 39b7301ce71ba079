//! A run's state as the published program saved it, for whoever has tools for such files.
//!
//! Shapes: N training images, D embedding width, K negatives.

use std::path::Path;

use safetensors::Dtype;

use crate::checkpoint::format::TensorBytes;
use crate::error::{Error, Result};
use crate::interop::torch::Archive;
use crate::pickle::{Global, Tree};

/// What a checkpoint of the published program holds. Every tensor may be borrowed.
///
/// The file loads with `torch.load(path, weights_only=False)` where that program's `lib` can be imported, because the
/// bank is in it as a pickled module. Two things say less than the program's own file: tensors are on the CPU, and the
/// modules' attribute `_backend`, which PyTorch no longer has, is missing.
#[derive(Clone, Debug)]
pub struct Published<'a> {
    /// Whose layout, and what only that one has.
    pub script: Script<'a>,
    /// Epochs completed. The CIFAR script counts differently: it stores the number, from 0, of the last one.
    pub epoch: u64,
    /// The encoder's parameters and buffers in PyTorch's order and by its names, without the prefix `module.`.
    pub encoder: Vec<TensorBytes<'a>>,
    /// The memory bank.
    pub bank: Bank<'a>,
    /// The best accuracy so far on the test images, 0 to 1: by the nearest row of the bank in the ImageNet script, by
    /// weighted kNN in the CIFAR script.
    pub best: f64,
}

/// The two training scripts.
#[derive(Clone, Debug)]
pub enum Script<'a> {
    /// `main.py`: `epoch`, `arch`, `state_dict`, `lemniscate`, `best_prec1`, `optimizer`. Names carry the prefix
    /// `module.`, as networks wrapped for data parallelism have them.
    ImageNet {
        /// The network's name, such as `resnet18`.
        arch: &'a str,
        /// The optimiser.
        optimizer: Sgd<'a>,
    },
    /// `cifar.py`: `net`, `lemniscate`, `acc`, `epoch`. Names are plain, as that script has them without a GPU.
    Cifar,
}

/// The bank and the settings that were stored with it.
#[derive(Clone, Debug)]
pub struct Bank<'a> {
    /// The rows, F32 `[N, D]`.
    pub memory: TensorBytes<'a>,
    /// T.
    pub temperature: f64,
    /// How much of the old row an update keeps: m, 0.5 in the paper's code.
    pub momentum: f64,
    /// Which of the two modules held the bank. Sampled softmax, which came later, had none.
    pub objective: Objective,
}

/// The objectives that the program had.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// `lib.LinearAverage.LinearAverage`, with `params` `[T, m]`.
    FullSoftmax,
    /// `lib.NCEAverage.NCEAverage`, with `params` `[K, T, Z, m]` and uniform noise.
    Nce {
        /// K, at least 1.
        n_negatives: usize,
        /// Z, or none before it has been estimated, which the program wrote as -1.
        z: Option<f64>,
    },
}

/// SGD's state, as `torch.optim.SGD` gives it.
#[derive(Clone, Debug)]
pub struct Sgd<'a> {
    /// The learning rate.
    pub lr: f64,
    /// μ (0.9 in the paper's code).
    pub momentum: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// A momentum buffer for each parameter, in the order of `net.parameters()`: that of the encoder's tensors with the
    /// buffers left out.
    pub buffers: Vec<TensorBytes<'a>>,
}

impl<'a> Published<'a> {
    /// Writes the checkpoint over `path` and syncs it. The same content gives the same bytes.
    ///
    /// # Errors
    /// [`Error::State`] if the bank is not F32 `[N, D]`, Z is not positive or beyond 32-bit floats, or a tensor's type
    /// is one that PyTorch has no storages of; [`Error::Io`] if the file cannot be written, the old one being intact.
    pub fn save(self, path: &Path) -> Result<()> {
        let mut archive = Archive::new();
        let root = self.tree(&mut archive)?;
        archive.save(path, &root)
    }

    fn tree(self, archive: &mut Archive<'a>) -> Result<Tree<'a>> {
        let epoch = |epochs: u64| Tree::Int(epochs as i64);
        Ok(match self.script {
            Script::ImageNet { arch, optimizer } => {
                let prefixed = |tensor: TensorBytes<'a>| TensorBytes {
                    name: format!("module.{}", tensor.name).into(),
                    ..tensor
                };
                Tree::dict([
                    ("epoch", epoch(self.epoch)),
                    ("arch", Tree::text(arch)),
                    ("state_dict", archive.state_dict(self.encoder.into_iter().map(prefixed))?),
                    ("lemniscate", self.bank.tree(archive)?),
                    ("best_prec1", Tree::Float(self.best)),
                    ("optimizer", optimizer.tree(archive)?),
                ])
            }
            Script::Cifar => Tree::dict([
                ("net", archive.state_dict(self.encoder)?),
                ("lemniscate", self.bank.tree(archive)?),
                ("acc", Tree::Float(self.best)),
                ("epoch", epoch(self.epoch.saturating_sub(1))),
            ]),
        })
    }
}

impl<'a> Bank<'a> {
    /// The module, with the attributes that its `__init__` sets.
    fn tree(self, archive: &mut Archive<'a>) -> Result<Tree<'a>> {
        let refuse = |problem: String| Error::State { what: "published program", problems: vec![problem] };
        let memory = self.memory;
        let (Dtype::F32, &[rows, _]) = (memory.dtype, &memory.shape[..]) else {
            return Err(refuse(format!(
                "memory: expected F32 [N, D], found {:?} {:?}",
                memory.dtype, memory.shape
            )));
        };
        let n_rows = ("nLem", Tree::Int(rows as i64));
        let (t, m) = (self.temperature as f32, self.momentum as f32);
        let (params, class, own) = match self.objective {
            Objective::FullSoftmax => {
                let class = Global { module: "lib.LinearAverage", name: "LinearAverage" };
                (vec![t, m], class, vec![n_rows])
            }
            Objective::Nce { n_negatives, z } => {
                let stored = z.map_or(-1.0, |z| z as f32);
                if z.is_some() && !(stored > 0.0 && stored.is_finite()) {
                    return Err(refuse(format!(
                        "Z: expected a positive 32-bit float, found {}",
                        z.unwrap_or_default()
                    )));
                }
                // The program normalises the frequencies where it was given them, so that ones became 1/N. Its table
                // for uniform noise then keeps every draw.
                let unigrams = archive.tensor(floats([rows], &vec![1.0 / rows as f32; rows]))?;
                let prob = archive.tensor(floats([rows], &vec![1.0; rows]))?;
                let alias =
                    archive.tensor(TensorBytes::new("alias", Dtype::I64, [rows], vec![0; 8 * rows]))?;
                let table = Tree::Object {
                    class: Global { module: "lib.alias_multinomial", name: "AliasMethod" },
                    attributes: vec![("prob", prob), ("alias", alias)],
                };
                let class = Global { module: "lib.NCEAverage", name: "NCEAverage" };
                let own = vec![
                    n_rows,
                    ("unigrams", unigrams),
                    ("multinomial", table),
                    ("K", Tree::Int(n_negatives as i64)),
                ];
                (vec![n_negatives as f32, t, stored, m], class, own)
            }
        };
        let params = archive.tensor(floats([params.len()], &params))?;
        let buffers = [("params", params), ("memory", archive.tensor(memory)?)];
        Ok(Tree::Object { class, attributes: module_attributes(buffers).into_iter().chain(own).collect() })
    }
}

/// The attributes that `nn.Module` had in 2018; later ones fill in what they have besides when they unpickle a module.
fn module_attributes<'a>(buffers: [(&'static str, Tree<'a>); 2]) -> Vec<(&'static str, Tree<'a>)> {
    let empty = || Tree::OrderedDict(Vec::new());
    vec![
        ("training", Tree::Bool(true)),
        ("_parameters", empty()),
        ("_buffers", Tree::ordered_dict(buffers)),
        ("_backward_hooks", empty()),
        ("_forward_hooks", empty()),
        ("_forward_pre_hooks", empty()),
        ("_modules", empty()),
    ]
}

impl<'a> Sgd<'a> {
    /// What `state_dict()` of the optimiser gives.
    fn tree(self, archive: &mut Archive<'a>) -> Result<Tree<'a>> {
        let count = self.buffers.len() as i64;
        let mut state = Vec::new();
        for (key, buffer) in (0..count).zip(self.buffers) {
            state.push((Tree::Int(key), Tree::dict([("momentum_buffer", archive.tensor(buffer)?)])));
        }
        let group = Tree::dict([
            ("lr", Tree::Float(self.lr)),
            ("momentum", Tree::Float(self.momentum)),
            ("dampening", Tree::Int(0)),
            ("weight_decay", Tree::Float(self.weight_decay)),
            ("nesterov", Tree::Bool(false)),
            ("params", Tree::List((0..count).map(Tree::Int).collect())),
        ]);
        Ok(Tree::dict([("state", Tree::Dict(state)), ("param_groups", Tree::List(vec![group]))]))
    }
}

/// A float tensor that owns its bytes.
fn floats<'a, const AXES: usize>(shape: [usize; AXES], values: &[f32]) -> TensorBytes<'a> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    TensorBytes::new("", Dtype::F32, shape, bytes)
}
