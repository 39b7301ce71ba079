//! The fixed set of constructors by which PyTorch's pickles describe tensors, recognised among inert records.

use std::collections::HashMap;

use super::{Dtype, Layout, Problem, Tensor, tar};
use crate::pickle::{Global, Id, Pickle, Value};

/// Modules nested deeper than this are refused: none is, and a cycle would be endless.
const MAX_DEPTH: usize = 64;
/// More tensors than any model has, and longer names.
const MAX_TENSORS: usize = 1 << 18;
const MAX_NAME: usize = 512;

/// A file's pickle, with its tensors where they lie in the file.
#[derive(Debug)]
pub struct Checkpoint<'a> {
    pickle: Pickle<'a>,
    file: &'a [u8],
    layout: &'a Layout,
}

/// What a pickle says about a storage.
pub(super) struct StorageId {
    pub(super) dtype: Dtype,
    /// In elements.
    pub(super) numel: u64,
    key: String,
    /// First element and number of elements, if only a part is meant.
    part: Option<(usize, usize)>,
}

impl StorageId {
    /// The storages that `pickle` refers to, by key; parts under the key of the whole.
    pub(super) fn all(pickle: &Pickle<'_>) -> Result<HashMap<String, StorageId>, Problem> {
        let mut all: HashMap<String, StorageId> = HashMap::new();
        for id in pickle.ids() {
            let Some(storage) = StorageId::at(pickle, id)? else { continue };
            if let Some(known) = all.get(&storage.key) {
                if (known.dtype, known.numel) != (storage.dtype, storage.numel) {
                    return Err(Problem::Damaged(format!("storage {:?} described in two ways", storage.key)));
                }
            } else {
                all.insert(storage.key.clone(), storage);
            }
        }
        Ok(all)
    }

    /// The storage at `id`: a persistent id `("storage", class, key, device, elements[, (key, offset, elements)])`.
    fn at(pickle: &Pickle<'_>, id: Id) -> Result<Option<Self>, Problem> {
        let Value::Persistent(description) = *pickle.get(id) else { return Ok(None) };
        let parts = pickle.items(description).unwrap_or_default();
        let [kind, class, key, _device, numel, view @ ..] = parts else { return Ok(None) };
        if !pickle.is_text(*kind, "storage") {
            return Ok(None);
        }
        let class = pickle.global(*class).ok_or_else(|| "a storage without a class".to_owned())?;
        if class.name.starts_with('Q') {
            return Err(Problem::Refused(format!("a quantised storage ({class:.80})")));
        }
        let dtype = Dtype::of_storage(class.name)
            .ok_or_else(|| Problem::Refused(format!("a storage of class {class:.80}")))?;
        let key = tar::name_of(pickle, *key)?;
        let numel = pickle.int(*numel).and_then(|n| u64::try_from(n).ok());
        let numel = numel.ok_or_else(|| format!("storage {key:?} without a size"))?;
        let part = match view.first().map(|&view| (pickle.get(view), pickle.items(view))) {
            None | Some((Value::None, _)) => None,
            Some((_, Some(&[_key, offset, count]))) => {
                let size = |id| pickle.int(id).and_then(|n| usize::try_from(n).ok());
                let part = size(offset).zip(size(count));
                Some(part.ok_or_else(|| format!("a part of storage {key:?} without a size"))?)
            }
            Some(_) => {
                return Err(Problem::Damaged(format!("a part of storage {key:?} that is not described")));
            }
        };
        Ok(Some(StorageId { dtype, numel, key, part }))
    }
}

impl<'a> Checkpoint<'a> {
    pub(super) fn new(pickle: Pickle<'a>, file: &'a [u8], layout: &'a Layout) -> Result<Self, Problem> {
        for id in pickle.ids() {
            if let Some(what) = pickle.global(id).and_then(refused_by_name) {
                return Err(Problem::Refused(what));
            }
        }
        StorageId::all(&pickle)?;
        Ok(Checkpoint { pickle, file, layout })
    }

    /// The pickle itself, whose values are inert.
    pub fn pickle(&self) -> &Pickle<'a> {
        &self.pickle
    }

    /// What the file holds.
    pub fn root(&self) -> Id {
        self.pickle.root()
    }

    /// The class of the object at `id`. PyTorch wrapped the classes of modules, to keep their source text beside them.
    pub fn class(&self, id: Id) -> Option<Global<'_>> {
        let class = self.pickle.object(id)?.class;
        let Value::Persistent(wrapped) = *self.pickle.get(class) else { return self.pickle.class(id) };
        match self.pickle.items(wrapped)? {
            [kind, class, ..] if self.pickle.is_text(*kind, "module") => self.pickle.global(*class),
            [class, ..] => self.pickle.global(*class),
            [] => None,
        }
    }

    /// The tensor at `id`, or `None` if something else is there.
    ///
    /// # Errors
    /// If it lies outside its storage, the storage is missing, or it is a tensor of a kind that is not read; in words
    /// that say what was found.
    pub fn tensor(&self, id: Id) -> Result<Option<Tensor<'a>>, String> {
        self.tensor_within(id, 4)
    }

    /// A parameter wraps a tensor, which may be wrapped itself, but not endlessly.
    fn tensor_within(&self, id: Id, depth: usize) -> Result<Option<Tensor<'a>>, String> {
        let pickle = &self.pickle;
        if let Value::Persistent(key) = *pickle.get(id) {
            // Other persistent ids are tuples.
            let described = tar::name_of(pickle, key).ok().and_then(|key| self.layout.tensors.get(&key));
            return described.map(|tensor| self.described(tensor)).transpose();
        }
        let Some(object) = pickle.object(id) else { return Ok(None) };
        let Some(function) = self.class(id) else { return Ok(None) };
        let args = pickle.items(object.args).unwrap_or_default();
        let wrapped = |inner: Id| match depth {
            0 => Err("tensors wrapped in each other without end".to_owned()),
            _ => self.tensor_within(inner, depth - 1),
        };
        let as_parameter = |tensor: Tensor<'a>| Tensor { parameter: true, ..tensor };

        match (function.module, function.name, args) {
            ("torch._utils", "_rebuild_tensor", &[storage, offset, shape, strides]) => {
                self.rebuilt(storage, offset, shape, strides, None).map(Some)
            }
            (
                "torch._utils",
                "_rebuild_tensor_v2",
                &[storage, offset, shape, strides, _, _, ref rest @ ..],
            ) => {
                self.no_metadata(rest.first().copied())?;
                self.rebuilt(storage, offset, shape, strides, None).map(Some)
            }
            (
                "torch._utils",
                "_rebuild_tensor_v3",
                &[storage, offset, shape, strides, _, _, dtype, ref rest @ ..],
            ) => {
                self.no_metadata(rest.first().copied())?;
                self.rebuilt(storage, offset, shape, strides, Some(dtype)).map(Some)
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", &[inner, ..])
            | ("torch.nn.parameter", "Parameter" | "Buffer", &[inner, ..]) => {
                Ok(wrapped(inner)?.map(as_parameter))
            }
            ("torch.autograd.variable", "Variable", &[inner, ..]) => wrapped(inner),
            ("torch._tensor", "_rebuild_from_type_v2", &[function, _, args, ..]) => {
                match (pickle.global(function), pickle.items(args)) {
                    (
                        Some(Global { module: "torch._utils", name: "_rebuild_tensor_v2" }),
                        Some(&[s, o, sh, st, ..]),
                    ) => self.rebuilt(s, o, sh, st, None).map(Some),
                    _ => Err("a tensor of a class of its own".into()),
                }
            }
            ("torch._utils", name, _) if name.starts_with("_rebuild") => {
                Err(format!("a tensor made by {name:.60}, which is not read"))
            }
            _ => Ok(None),
        }
    }

    /// A conjugated or negated view has its sign beside its numbers; reading it without would be wrong.
    fn no_metadata(&self, metadata: Option<Id>) -> Result<(), String> {
        match metadata.map(|id| self.pickle.get(id)) {
            None | Some(Value::None) => Ok(()),
            Some(Value::Dict(pairs)) if pairs.is_empty() => Ok(()),
            _ => Err("a conjugated or negated view, which is not read".into()),
        }
    }

    fn rebuilt(
        &self,
        storage: Id,
        offset: Id,
        shape: Id,
        strides: Id,
        dtype: Option<Id>,
    ) -> Result<Tensor<'a>, String> {
        let pickle = &self.pickle;
        let id = match StorageId::at(pickle, storage) {
            Ok(Some(id)) => id,
            Ok(None) => return Err(format!("a tensor without a storage but {}", pickle.describe(storage))),
            Err(Problem::Damaged(reason) | Problem::Refused(reason)) => return Err(reason),
        };
        let missing = || format!("a tensor whose storage {:?} is missing", short(&id.key));
        let range = self.layout.storages.get(&id.key).ok_or_else(missing)?.clone();
        let mut storage = &self.file[range];
        let size = id.dtype.size();
        if id.numel.checked_mul(size as u64) != Some(storage.len() as u64) {
            return Err(format!(
                "storage {:?} of {} bytes, not {} × {size}",
                short(&id.key),
                storage.len(),
                id.numel
            ));
        }
        if let Some((first, count)) = id.part {
            let part = first.checked_mul(size).zip(count.checked_mul(size));
            let part = part.and_then(|(first, bytes)| storage.get(first..)?.get(..bytes));
            storage = part.ok_or_else(|| format!("a part outside of storage {:?}", short(&id.key)))?;
        }
        let dtype = match dtype {
            None => id.dtype,
            Some(dtype) => pickle
                .global(dtype)
                .filter(|global| global.module == "torch")
                .and_then(|global| Dtype::named(global.name))
                .ok_or_else(|| format!("a tensor whose type is {}", pickle.describe(dtype)))?,
        };
        let numbers =
            |id| self.numbers(id).ok_or_else(|| format!("a tensor whose size is {}", pickle.describe(id)));
        let offset = pickle.int(offset).ok_or("a tensor without an offset")?;
        let view = (&numbers(shape)?[..], &numbers(strides)?[..], offset);
        Tensor::new(dtype, view, storage, self.layout.big_endian, self.file.len())
    }

    fn described(&self, tensor: &tar::Described) -> Result<Tensor<'a>, String> {
        let view = (&tensor.shape[..], &tensor.strides[..], tensor.offset);
        let storage = &self.file[tensor.storage.clone()];
        Tensor::new(tensor.dtype, view, storage, self.layout.big_endian, self.file.len())
    }

    /// The integers in a tuple, a list or a `torch.Size`.
    pub fn numbers(&self, id: Id) -> Option<Vec<i64>> {
        let items = match self.pickle.items(id) {
            Some(items) => items,
            None if self.class(id)?.is(&["torch"], "Size") => {
                let &[inner] = self.pickle.items(self.pickle.object(id)?.args)? else { return None };
                self.pickle.items(inner)?
            }
            None => return None,
        };
        items.iter().map(|&id| self.pickle.int(id)).collect()
    }

    /// The tensors of a state dict or of a pickled module, in order, named as `state_dict()` names them.
    ///
    /// In a module these are the parameters and buffers of itself and of the modules within.
    ///
    /// # Errors
    /// If one of the tensors cannot be read; with its name and what was found.
    pub fn named_tensors(&self, id: Id) -> Result<Vec<(String, Tensor<'a>)>, String> {
        let mut walk = Walk { found: Vec::new(), modules_left: self.pickle.n_values() };
        self.collect(id, "", 0, &mut walk)?;
        Ok(walk.found)
    }

    fn collect(&self, id: Id, prefix: &str, depth: usize, walk: &mut Walk<'a>) -> Result<(), String> {
        // Modules may share parts, but if each had the next one twice, they would unfold without end.
        walk.modules_left = walk.modules_left.saturating_sub(1);
        if depth > MAX_DEPTH || walk.modules_left == 0 {
            return Err("modules nested or shared without end".into());
        }
        if let Some(entries) = self.pickle.entries(id) {
            return self.collect_entries(&entries, prefix, walk);
        }
        let table = |name: &str| self.pickle.entries(self.pickle.attribute(id, name)?);
        for name in ["_parameters", "_buffers"] {
            self.collect_entries(&table(name).unwrap_or_default(), prefix, walk)?;
        }
        for &(key, module) in table("_modules").unwrap_or_default().iter() {
            if let Some(key) = self.pickle.text(key) {
                self.collect(module, &(joined(prefix, &key)? + "."), depth + 1, walk)?;
            }
        }
        Ok(())
    }

    fn collect_entries(&self, entries: &[(Id, Id)], prefix: &str, walk: &mut Walk<'a>) -> Result<(), String> {
        for &(key, value) in entries {
            let Some(key) = self.pickle.text(key) else { continue };
            let Some(tensor) = self.tensor(value).map_err(|reason| format!("{prefix}{key:.80}: {reason}"))?
            else {
                continue;
            };
            if walk.found.len() == MAX_TENSORS {
                return Err(format!("more than {MAX_TENSORS} tensors"));
            }
            walk.found.push((joined(prefix, &key)?, tensor));
        }
        Ok(())
    }
}

/// What a walk through modules has found, and how far it may still go.
struct Walk<'a> {
    found: Vec<(String, Tensor<'a>)>,
    modules_left: usize,
}

fn joined(prefix: &str, key: &str) -> Result<String, String> {
    match prefix.len() + key.len() {
        ..=MAX_NAME => Ok(format!("{prefix}{key}")),
        length => Err(format!("a name of {length} characters")),
    }
}

/// What a file is that imports `global`, if it is of a kind that is refused.
fn refused_by_name(global: Global<'_>) -> Option<String> {
    let quantised = global.module.starts_with("torch")
        && (matches!(global.name, "_rebuild_qtensor" | "per_tensor_affine" | "per_channel_affine")
            || (global.name.starts_with('Q') && global.name.ends_with("Storage")));
    let sharded = ["torch.distributed._shard", "torch.distributed._tensor", "torch.distributed.tensor"];
    let what = if quantised {
        "a quantised model"
    } else if sharded.iter().any(|module| global.module.starts_with(module)) {
        "a part of a sharded checkpoint"
    } else if global.module.starts_with("__torch__") {
        "TorchScript, which is a program"
    } else {
        return None;
    };
    Some(format!("{what} ({global:.80})"))
}

fn short(key: &str) -> String {
    key.chars().take(40).collect()
}
