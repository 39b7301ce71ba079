//! What an encoder knows: its named tensors, in the order of PyTorch's `state_dict`, and their gradients.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, no_grad};

use super::convert::to_vec_f32;
use crate::error::{Error, Result};

/// Whether a tensor is learnt or only carried along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Learnt by gradient: f32, requires a gradient.
    Weight,
    /// BatchNorm's running statistics (f32) and step counts (i64).
    Buffer,
}

/// One named tensor.
#[derive(Debug)]
pub struct Entry {
    /// PyTorch's name, such as `layer1.0.bn1.running_mean`.
    pub name: String,
    /// The value. Convolution weights have channels-last memory; their shape is PyTorch's `[out, in, k, k]`.
    pub tensor: Tensor,
    /// What it is.
    pub role: Role,
}

/// All named tensors of an encoder. The network holds handles to the same tensors: values change in place.
#[derive(Debug)]
pub struct Parameters {
    entries: Vec<Entry>,
}

impl Parameters {
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        Parameters { entries }
    }

    /// Every tensor, in PyTorch's order: what a checkpoint stores.
    pub fn state(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The learnt tensors, in order.
    pub fn trainable(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.role == Role::Weight)
    }

    /// The learnt tensors, in order, to be changed.
    pub(crate) fn trainable_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().filter(|entry| entry.role == Role::Weight)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.iter().find(|entry| entry.name == name).map(|entry| &entry.tensor)
    }

    /// Numbers learnt.
    pub fn count(&self) -> usize {
        self.trainable().map(|entry| entry.tensor.numel()).sum()
    }

    /// 64 hexadecimal digits (BLAKE3) over all names and values: equal for equal encoders, and before and after what
    /// should not have changed one.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for entry in &self.entries {
            hasher.update(entry.name.as_bytes());
            for value in to_vec_f32(&entry.tensor) {
                hasher.update(&value.to_le_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The name of the first tensor that holds a NaN or an infinity, if any does.
    pub fn first_non_finite(&self) -> Option<&str> {
        let finite =
            |entry: &&Entry| bool::try_from(no_grad(|| entry.tensor.isfinite().all())).unwrap_or(false);
        self.entries.iter().find(|entry| !finite(entry)).map(|entry| entry.name.as_str())
    }

    /// Copies a whole state in; any device and strides. All or nothing: the state is checked before the first copy.
    ///
    /// # Errors
    /// If a name is missing or unknown, or a shape or kind differs; every such name is listed.
    pub fn load(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        load_strictly("encoder", self.entries.iter_mut().map(|e| (e.name.as_str(), &mut e.tensor)), state)
    }
}

/// Copies `state` into `targets` if names, shapes and kinds agree exactly; changes nothing otherwise.
pub(crate) fn load_strictly<'a>(
    what: &'static str,
    targets: impl Iterator<Item = (&'a str, &'a mut Tensor)>,
    state: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let targets: Vec<_> = targets.collect();
    let mut problems = Vec::new();
    for (name, target) in &targets {
        match state.get(*name) {
            None => problems.push(format!("{name}: missing")),
            Some(tensor) if tensor.size() != target.size() || tensor.kind() != target.kind() => {
                problems.push(format!("{name}: expected {}, found {}", describe(target), describe(tensor)))
            }
            Some(_) => {}
        }
    }
    let known: std::collections::HashSet<_> = targets.iter().map(|(name, _)| *name).collect();
    problems.extend(
        state.keys().filter(|name| !known.contains(name.as_str())).map(|name| format!("{name}: unexpected")),
    );
    if !problems.is_empty() {
        return Err(Error::State { what, problems });
    }
    no_grad(|| {
        for (name, target) in targets {
            target
                .f_copy_(&state[name])
                .map_err(|error| Error::State { what, problems: vec![format!("{name}: {error}")] })?;
        }
        Ok(())
    })
}

/// Kind and shape, as in `f32 [64, 3, 7, 7]`.
fn describe(tensor: &Tensor) -> String {
    let kind = match tensor.kind() {
        Kind::Float => "f32".to_owned(),
        Kind::Int64 => "i64".to_owned(),
        Kind::Half => "f16".to_owned(),
        Kind::BFloat16 => "bf16".to_owned(),
        Kind::Double => "f64".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    };
    format!("{kind} {:?}", tensor.size())
}

/// One gradient for every learnt tensor of a [`Parameters`], in its order.
#[derive(Debug)]
pub struct Gradients(Vec<Tensor>);

impl Gradients {
    /// The gradient of the scalar `loss` with respect to `parameters`. Uses up the graph behind `loss`.
    ///
    /// # Panics
    /// If `loss` is not a scalar that depends on every one of `parameters`.
    pub fn of(loss: &Tensor, parameters: &Parameters) -> Self {
        let weights: Vec<&Tensor> = parameters.trainable().map(|entry| &entry.tensor).collect();
        Gradients(Tensor::run_backward(&[loss], &weights, false, false))
    }

    /// Gradients in the order of [`Parameters::trainable`], however they were obtained.
    #[cfg(test)]
    pub(crate) fn from_tensors(tensors: Vec<Tensor>) -> Self {
        Gradients(tensors)
    }

    /// The tensors themselves.
    pub(crate) fn into_tensors(self) -> Vec<Tensor> {
        self.0
    }

    /// One tensor for each of [`Parameters::trainable`].
    pub fn tensors(&self) -> &[Tensor] {
        &self.0
    }

    /// Adds the gradient of another part of the batch (gradient accumulation: divide the loss by the number of
    /// parts).
    ///
    /// # Panics
    /// If the two belong to different encoders.
    pub fn accumulate(&mut self, other: &Gradients) {
        assert_eq!(self.0.len(), other.0.len(), "gradients of different encoders");
        no_grad(|| {
            for (sum, part) in self.0.iter_mut().zip(&other.0) {
                let _ = sum.g_add_(part);
            }
        });
    }

    /// The Euclidean norm over all of them.
    pub fn norm(&self) -> f64 {
        let squares: f64 =
            self.0.iter().map(|gradient| gradient.square().sum(Kind::Double).double_value(&[])).sum();
        squares.sqrt()
    }
}
