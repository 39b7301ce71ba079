//! The other direction: a tree of plain values becomes a pickle of protocol 2, which `torch.save` writes too.
//!
//! Python 2.3 and everything since reads it. Only opcodes that `torch.load(weights_only=True)` knows are used.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Global;
use super::opcode::*;

/// A value to be pickled. Nothing is shared: what occurs twice is two equal objects to whoever reads it.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Text(Cow<'a, str>),
    /// A list.
    List(Vec<Tree<'a>>),
    /// A tuple.
    Tuple(Vec<Tree<'a>>),
    /// A dict: keys and values, in order.
    Dict(Vec<(Tree<'a>, Tree<'a>)>),
    /// A `collections.OrderedDict`.
    OrderedDict(Vec<(Tree<'a>, Tree<'a>)>),
    /// A class or function, which the reader imports.
    Global(Global<'static>),
    /// What `function(*args)` returns where the pickle is read.
    Call {
        /// What is called.
        function: Global<'static>,
        /// With what.
        args: Vec<Tree<'a>>,
    },
    /// An instance of a class, made without `__init__`, its attributes handed to `__setstate__` or else set.
    Object {
        /// The class.
        class: Global<'static>,
        /// Names and values, in order.
        attributes: Vec<(&'static str, Tree<'a>)>,
    },
    /// A reference to data outside the pickle, by whatever the reader's `persistent_load` understands.
    Persistent(Box<Tree<'a>>),
}

impl<'a> Tree<'a> {
    /// Text.
    pub fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Tree::Text(text.into())
    }

    /// A dict whose keys are text.
    pub fn dict<K: Into<Cow<'a, str>>>(entries: impl IntoIterator<Item = (K, Tree<'a>)>) -> Self {
        Tree::Dict(entries.into_iter().map(|(key, value)| (Tree::text(key), value)).collect())
    }

    /// An `OrderedDict` whose keys are text.
    pub fn ordered_dict<K: Into<Cow<'a, str>>>(entries: impl IntoIterator<Item = (K, Tree<'a>)>) -> Self {
        Tree::OrderedDict(entries.into_iter().map(|(key, value)| (Tree::text(key), value)).collect())
    }

    /// The pickle. Equal trees give equal bytes.
    ///
    /// # Panics
    /// If a text takes 4 GiB.
    pub fn to_pickle(&self) -> Vec<u8> {
        let mut emitter = Emitter { out: vec![PROTO, 2], memo: HashMap::new() };
        emitter.value(self);
        emitter.out.push(STOP);
        emitter.out
    }
}

struct Emitter {
    out: Vec<u8>,
    /// Texts and names that were written before, as the opcodes that wrote them, and their place in the memo.
    memo: HashMap<Vec<u8>, u32>,
}

impl Emitter {
    fn value(&mut self, tree: &Tree<'_>) {
        match tree {
            Tree::None => self.out.push(NONE),
            Tree::Bool(value) => self.out.push(if *value { NEWTRUE } else { NEWFALSE }),
            Tree::Int(value) => self.int(*value),
            Tree::Float(value) => {
                self.out.push(BINFLOAT);
                self.out.extend(value.to_be_bytes());
            }
            Tree::Text(text) => {
                let length = u32::try_from(text.len()).expect("a text of less than 4 GiB");
                self.memoised([&[BINUNICODE], &length.to_le_bytes()[..], text.as_bytes()].concat());
            }
            Tree::List(items) => {
                self.out.push(EMPTY_LIST);
                if !items.is_empty() {
                    self.out.push(MARK);
                    self.values(items);
                    self.out.push(APPENDS);
                }
            }
            Tree::Tuple(items) => self.tuple(items),
            Tree::Dict(entries) => {
                self.out.push(EMPTY_DICT);
                self.entries(entries);
            }
            Tree::OrderedDict(entries) => {
                self.call(Global { module: "collections", name: "OrderedDict" }, &[]);
                self.entries(entries);
            }
            Tree::Global(global) => self.global(*global),
            Tree::Call { function, args } => self.call(*function, args),
            Tree::Object { class, attributes } => {
                self.global(*class);
                self.out.extend([EMPTY_TUPLE, NEWOBJ, EMPTY_DICT, MARK]);
                for (name, value) in attributes {
                    self.value(&Tree::text(*name));
                    self.value(value);
                }
                self.out.extend([SETITEMS, BUILD]);
            }
            Tree::Persistent(id) => {
                self.value(id);
                self.out.push(BINPERSID);
            }
        }
    }

    fn values(&mut self, items: &[Tree<'_>]) {
        items.iter().for_each(|item| self.value(item));
    }

    fn int(&mut self, value: i64) {
        if let Ok(value) = u8::try_from(value) {
            self.out.extend([BININT1, value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.out.push(BININT2);
            self.out.extend(value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.out.push(BININT);
            self.out.extend(value.to_le_bytes());
        } else {
            self.out.extend([LONG1, 8]);
            self.out.extend(value.to_le_bytes());
        }
    }

    fn tuple(&mut self, items: &[Tree<'_>]) {
        match items.len() {
            0 => self.out.push(EMPTY_TUPLE),
            count @ 1..=3 => {
                self.values(items);
                self.out.push([TUPLE1, TUPLE2, TUPLE3][count - 1]);
            }
            _ => {
                self.out.push(MARK);
                self.values(items);
                self.out.push(TUPLE);
            }
        }
    }

    /// Sets keys of the dict on top of the stack.
    fn entries(&mut self, entries: &[(Tree<'_>, Tree<'_>)]) {
        if entries.is_empty() {
            return;
        }
        self.out.push(MARK);
        for (key, value) in entries {
            self.value(key);
            self.value(value);
        }
        self.out.push(SETITEMS);
    }

    fn call(&mut self, function: Global<'_>, args: &[Tree<'_>]) {
        self.global(function);
        self.tuple(args);
        self.out.push(REDUCE);
    }

    fn global(&mut self, Global { module, name }: Global<'_>) {
        self.memoised([&[GLOBAL], module.as_bytes(), b"\n", name.as_bytes(), b"\n"].concat());
    }

    /// Writes `opcode` and keeps what it makes in the memo, or fetches it from there.
    fn memoised(&mut self, opcode: Vec<u8>) {
        let next = self.memo.len() as u32;
        let (index, short, long) = match self.memo.get(&opcode) {
            Some(&index) => (index, BINGET, LONG_BINGET),
            None => {
                self.out.extend(&opcode);
                self.memo.insert(opcode, next);
                (next, BINPUT, LONG_BINPUT)
            }
        };
        match u8::try_from(index) {
            Ok(index) => self.out.extend([short, index]),
            Err(_) => {
                self.out.push(long);
                self.out.extend(index.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Id, Pickle, Value};
    use super::*;

    const CLASS: Global<'static> = Global { module: "package.module", name: "Class" };

    /// Whether the reader found in `pickle` at `id` what `tree` says.
    fn same(pickle: &Pickle<'_>, id: Id, tree: &Tree<'_>) -> bool {
        let all = |ids: &[Id], trees: &[Tree<'_>]| {
            ids.len() == trees.len() && ids.iter().zip(trees).all(|(&id, tree)| same(pickle, id, tree))
        };
        let pairs = |ids: &[(Id, Id)], trees: &[(Tree<'_>, Tree<'_>)]| {
            ids.len() == trees.len()
                && ids
                    .iter()
                    .zip(trees)
                    .all(|(ids, trees)| same(pickle, ids.0, &trees.0) && same(pickle, ids.1, &trees.1))
        };
        match (pickle.get(id), tree) {
            (Value::None, Tree::None) => true,
            (Value::Bool(found), Tree::Bool(value)) => found == value,
            (Value::Int(found), Tree::Int(value)) => found == value,
            (Value::Float(found), Tree::Float(value)) => found.to_bits() == value.to_bits(),
            (Value::Str(found), Tree::Text(value)) => found == value,
            (Value::List(found), Tree::List(items)) => all(found, items),
            (Value::Tuple(found), Tree::Tuple(items)) => all(found, items),
            (Value::Dict(found), Tree::Dict(entries)) => pairs(found, entries),
            (Value::Object(object), Tree::OrderedDict(entries)) => {
                pickle.class(id).unwrap().is(&["collections"], "OrderedDict") && pairs(&object.pairs, entries)
            }
            (Value::Global { .. }, Tree::Global(global)) => pickle.global(id) == Some(*global),
            (Value::Object(object), Tree::Call { function, args }) => {
                pickle.class(id) == Some(*function) && all(pickle.items(object.args).unwrap(), args)
            }
            (Value::Object(_), Tree::Object { class, attributes }) => {
                let found = pickle.attributes(id).unwrap();
                pickle.class(id) == Some(*class)
                    && found.len() == attributes.len()
                    && found.iter().zip(attributes).all(|(&(key, value), (name, tree))| {
                        pickle.is_text(key, name) && same(pickle, value, tree)
                    })
            }
            (&Value::Persistent(found), Tree::Persistent(inner)) => same(pickle, found, inner),
            _ => false,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let ints =
            [0, 255, 256, 65_535, 65_536, -1, i64::from(i32::MAX), 1 << 31, -(1 << 40), i64::MAX, i64::MIN];
        let tuple = |length: i64| Tree::Tuple((0..length).map(Tree::Int).collect());
        let tree = Tree::dict([
            ("none", Tree::None),
            ("bools", Tree::List(vec![Tree::Bool(true), Tree::Bool(false)])),
            ("ints", Tree::List(ints.into_iter().map(Tree::Int).collect())),
            (
                "floats",
                Tree::List([0.1, -0.0, f64::INFINITY, f64::NAN].into_iter().map(Tree::Float).collect()),
            ),
            ("text", Tree::text("caf\u{e9} \u{1f600}\n\0")),
            ("tuples", Tree::List((0..6).map(tuple).collect())),
            (
                "empty",
                Tree::Tuple(vec![Tree::List(vec![]), Tree::dict::<&str>([]), Tree::ordered_dict::<&str>([])]),
            ),
            ("by int", Tree::Dict((0..3).map(|n| (Tree::Int(n), Tree::text("same"))).collect())),
            ("ordered", Tree::ordered_dict([("b", Tree::Int(1)), ("a", Tree::text("b"))])),
            ("class", Tree::Global(CLASS)),
            ("call", Tree::Call { function: CLASS, args: vec![Tree::Int(1), Tree::Global(CLASS)] }),
            ("object", Tree::Object { class: CLASS, attributes: vec![("x", Tree::None), ("y", tuple(4))] }),
            ("bare object", Tree::Object { class: CLASS, attributes: vec![] }),
            ("elsewhere", Tree::Persistent(Box::new(tuple(5)))),
        ]);
        let bytes = tree.to_pickle();
        let pickle = Pickle::read(&bytes).unwrap();
        assert_eq!(pickle.consumed(), bytes.len());
        assert!(same(&pickle, pickle.root(), &tree), "{pickle:?}");
        assert_eq!(bytes, tree.to_pickle());
    }

    #[test]
    fn texts_and_names_are_written_once() {
        let names: Vec<String> = (0..600).map(|n| format!("name {n}")).collect();
        let once = Tree::List(names.iter().map(|name| Tree::text(name.as_str())).collect());
        let twice = Tree::List(vec![once.clone(), once.clone()]);
        let (short, long) = (once.to_pickle(), twice.to_pickle());
        // Two bytes to fetch one of the first 256, five for one of the others; three for each list around them.
        assert_eq!(long.len(), short.len() + 2 * 256 + 5 * 344 + 2 * 3);
        let pickle = Pickle::read(&long).unwrap();
        assert!(same(&pickle, pickle.root(), &twice));
        let lists = pickle.items(pickle.root()).unwrap();
        assert_eq!(pickle.items(lists[0]), pickle.items(lists[1]));
    }

    /// `pickle.dumps({"a": (1, 1000, -1), "b": [None, 0.5]}, protocol=2)` of Python 3.11, but that it keeps containers
    /// in the memo, which nobody refers to.
    #[test]
    fn the_bytes_are_pythons() {
        let tree = Tree::dict([
            ("a", Tree::Tuple(vec![Tree::Int(1), Tree::Int(1000), Tree::Int(-1)])),
            ("b", Tree::List(vec![Tree::None, Tree::Float(0.5)])),
        ]);
        let expected = b"\x80\x02}(X\x01\0\0\0aq\0K\x01M\xe8\x03J\xff\xff\xff\xff\x87\
              X\x01\0\0\0bq\x01](NG?\xe0\0\0\0\0\0\0eu.";
        assert_eq!(tree.to_pickle(), expected);
    }
}
