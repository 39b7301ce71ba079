//! What a pickle describes: an arena of inert values that refer to each other by index.

use std::borrow::Cow;

/// A value's place in its [`Pickle`]. Equal ids are the same object, as Python's `is` would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub(super) u32);

/// One value. Containers hold the ids of what they contain, perhaps their own.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of 64 bits.
    Int(i64),
    /// A longer integer: little-endian two's complement.
    BigInt(Cow<'a, [u8]>),
    /// A floating-point number.
    Float(f64),
    /// `bytes` or `bytearray`.
    Bytes(Cow<'a, [u8]>),
    /// A `str` of Python 2: bytes that may be meant as text.
    OldStr(Cow<'a, [u8]>),
    /// Text; what is not valid UTF-8 (lone surrogates) became U+FFFD.
    Str(Cow<'a, str>),
    /// A list.
    List(Vec<Id>),
    /// A tuple.
    Tuple(Box<[Id]>),
    /// A set or frozenset, in the order written.
    Set(Vec<Id>),
    /// Keys and values in the order written; of equal keys the last one counts.
    Dict(Vec<(Id, Id)>),
    /// Something a program would have imported: two [`Value::Str`].
    Global {
        /// Dotted module path.
        module: Id,
        /// Name within the module, perhaps dotted itself.
        name: Id,
    },
    /// Something a program would have made by a call.
    Object(Box<Object>),
    /// A reference to data outside the pickle, by whatever identifies it.
    Persistent(Id),
}

/// A call that was not made: what would have been called, with what, and what would have been done to the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The class or function: a [`Value::Global`], or rarely something that was itself to be computed.
    pub class: Id,
    /// The arguments: a [`Value::Tuple`].
    pub args: Id,
    /// Arguments by name: a [`Value::Dict`].
    pub kwargs: Option<Id>,
    /// What `__setstate__` would have been given; usually the attributes as a [`Value::Dict`].
    pub state: Option<Id>,
    /// What would have been appended or added.
    pub items: Vec<Id>,
    /// What would have been set by key.
    pub pairs: Vec<(Id, Id)>,
}

/// The name of something a program would have imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Global<'a> {
    /// Dotted module path.
    pub module: &'a str,
    /// Name within the module.
    pub name: &'a str,
}

impl Global<'_> {
    /// Whether this is `name` of any of `modules`: things move between modules as their packages age.
    pub fn is(&self, modules: &[&str], name: &str) -> bool {
        self.name == name && modules.contains(&self.module)
    }
}

impl std::fmt::Display for Global<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}.{}", self.module, self.name))
    }
}

/// A pickle that was read. Its values borrow from the input.
#[derive(Clone, Debug)]
pub struct Pickle<'a> {
    pub(super) nodes: Vec<Value<'a>>,
    pub(super) root: Id,
    pub(super) consumed: usize,
}

impl<'a> Pickle<'a> {
    /// The value that the pickle returns.
    pub fn root(&self) -> Id {
        self.root
    }

    /// How many bytes of the input the pickle took; the rest is none of its business.
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// Number of values, an upper bound of every id's index.
    pub fn n_values(&self) -> usize {
        self.nodes.len()
    }

    /// Every value's id, in the order in which they were made.
    pub fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        (0..self.nodes.len() as u32).map(Id)
    }

    /// The value at `id`.
    ///
    /// # Panics
    /// If `id` comes from another, larger pickle.
    pub fn get(&self, id: Id) -> &Value<'a> {
        &self.nodes[id.0 as usize]
    }

    /// The integer at `id`, a Boolean counting as 0 or 1 as in Python.
    pub fn int(&self, id: Id) -> Option<i64> {
        match *self.get(id) {
            Value::Int(value) => Some(value),
            Value::Bool(value) => Some(i64::from(value)),
            _ => None,
        }
    }

    /// The text at `id`: a `str`, or Python 2's `str` as UTF-8 or else as LATIN-1.
    pub fn text(&self, id: Id) -> Option<Cow<'_, str>> {
        match self.get(id) {
            Value::Str(text) => Some(Cow::Borrowed(text)),
            Value::OldStr(bytes) => Some(match std::str::from_utf8(bytes) {
                Ok(text) => Cow::Borrowed(text),
                Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
            }),
            _ => None,
        }
    }

    /// Whether the value at `id` is the text `expected`.
    pub fn is_text(&self, id: Id, expected: &str) -> bool {
        match self.get(id) {
            Value::Str(text) => text == expected,
            Value::OldStr(bytes) => **bytes == *expected.as_bytes(),
            _ => false,
        }
    }

    /// The bytes at `id`: `bytes`, Python 2's `str`, or the call by which Python 3 wrote `bytes` for Python 2
    /// (`_codecs.encode(text, 'latin1')`).
    pub fn bytes(&self, id: Id) -> Option<Cow<'_, [u8]>> {
        match self.get(id) {
            Value::Bytes(bytes) | Value::OldStr(bytes) => Some(Cow::Borrowed(bytes)),
            Value::Object(object) => {
                let class = self.global(object.class)?;
                let args = self.items(object.args)?;
                if class.is(&["__builtin__", "builtins"], "bytes") && args.is_empty() {
                    return Some(Cow::Borrowed(&[]));
                }
                let ([text, codec], true) = (args, class.is(&["_codecs"], "encode")) else { return None };
                let (Value::Str(text), true) = (self.get(*text), self.is_text(*codec, "latin1")) else {
                    return None;
                };
                text.chars().map(|c| u8::try_from(c).ok()).collect::<Option<Vec<u8>>>().map(Cow::Owned)
            }
            _ => None,
        }
    }

    /// What the list, tuple or set at `id` contains.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::List(items) | Value::Set(items) => Some(items),
            Value::Tuple(items) => Some(items),
            // Before protocol 4, `set([...])`.
            Value::Object(object) => {
                let class = self.global(object.class)?;
                let builtin = ["__builtin__", "builtins"];
                let set = class.is(&builtin, "set") || class.is(&builtin, "frozenset");
                match (set, self.get(object.args)) {
                    (true, Value::Tuple(args)) => match args.first().map(|&list| self.get(list)) {
                        Some(Value::List(items)) => Some(items),
                        _ => None,
                    },
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The name at `id`, if it is something a program would have imported.
    pub fn global(&self, id: Id) -> Option<Global<'_>> {
        let Value::Global { module, name } = self.get(id) else { return None };
        match (self.get(*module), self.get(*name)) {
            (Value::Str(module), Value::Str(name)) => Some(Global { module, name }),
            _ => None,
        }
    }

    /// The call at `id`.
    pub fn object(&self, id: Id) -> Option<&Object> {
        match self.get(id) {
            Value::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The class that the object at `id` would have had, or the function that would have made it. Protocols 0 and
    /// 1 name a class as the first argument of a helper.
    pub fn class(&self, id: Id) -> Option<Global<'_>> {
        let object = self.object(id)?;
        let class = self.global(object.class)?;
        let copyreg = ["copy_reg", "copyreg"];
        if class.is(&copyreg, "_reconstructor") || class.is(&copyreg, "__newobj__") {
            return self.global(*self.items(object.args)?.first()?);
        }
        Some(class)
    }

    /// Keys and values of the dict or `OrderedDict` at `id`, in order.
    pub fn entries(&self, id: Id) -> Option<Cow<'_, [(Id, Id)]>> {
        if let Value::Dict(pairs) = self.get(id) {
            return Some(Cow::Borrowed(pairs));
        }
        let class = self.class(id)?;
        let object = self.object(id)?;
        let plain = class.is(&["collections"], "OrderedDict") || class.is(&["collections"], "defaultdict");
        if !plain {
            return None;
        }
        // Python 2 handed OrderedDict a list of pairs; Python 3 sets one after the other.
        match self.items(object.args)? {
            [list] if class.name == "OrderedDict" => {
                let pair = |&id: &Id| match self.items(id) {
                    Some(&[key, value]) => Some((key, value)),
                    _ => None,
                };
                let mut pairs = self.items(*list)?.iter().map(pair).collect::<Option<Vec<_>>>()?;
                pairs.extend_from_slice(&object.pairs);
                Some(Cow::Owned(pairs))
            }
            _ => Some(Cow::Borrowed(&object.pairs)),
        }
    }

    /// The value under the text `key` in the dict or `OrderedDict` at `id`.
    pub fn entry(&self, id: Id, key: &str) -> Option<Id> {
        let entries = self.entries(id)?;
        entries.iter().rev().find(|(k, _)| self.is_text(*k, key)).map(|&(_, value)| value)
    }

    /// The attributes of the object at `id`: its state, if that is a dict, or the dict beside its slots.
    pub fn attributes(&self, id: Id) -> Option<&[(Id, Id)]> {
        let state = self.object(id)?.state?;
        let dict = match self.get(state) {
            Value::Tuple(parts) if parts.len() == 2 => parts[0],
            _ => state,
        };
        match self.get(dict) {
            Value::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// The attribute `name` of the object at `id`.
    pub fn attribute(&self, id: Id, name: &str) -> Option<Id> {
        let attributes = self.attributes(id)?;
        attributes.iter().rev().find(|(key, _)| self.is_text(*key, name)).map(|&(_, value)| value)
    }

    /// What kind of value is at `id`, in a word or two for an error message.
    pub fn describe(&self, id: Id) -> String {
        match self.get(id) {
            Value::None => "None".into(),
            Value::Bool(_) => "a bool".into(),
            Value::Int(_) | Value::BigInt(_) => "an int".into(),
            Value::Float(_) => "a float".into(),
            Value::Bytes(_) => "bytes".into(),
            Value::OldStr(_) | Value::Str(_) => "a str".into(),
            Value::List(items) => format!("a list of {}", items.len()),
            Value::Tuple(items) => format!("a tuple of {}", items.len()),
            Value::Set(items) => format!("a set of {}", items.len()),
            Value::Dict(pairs) => format!("a dict of {}", pairs.len()),
            Value::Global { .. } => {
                self.global(id).map_or("a name".into(), |g| format!("the name {}", cut(g)))
            }
            Value::Object(_) => self.class(id).map_or("an object".into(), |g| format!("a {}", cut(g))),
            Value::Persistent(_) => "a persistent id".into(),
        }
    }
}

/// A name short enough for a message.
fn cut(global: Global<'_>) -> String {
    let name = global.to_string();
    match name.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}...", &name[..end]),
        None if name.chars().any(char::is_control) => format!("{name:?}"),
        None => name,
    }
}
