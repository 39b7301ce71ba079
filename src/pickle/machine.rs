//! The stack machine: one opcode at a time from bytes to values.

use std::borrow::Cow;
use std::collections::HashMap;

use super::opcode::*;
use super::{Id, Object, Pickle, PickleError, Value, text};

/// The newest protocol that is known.
const MAX_PROTOCOL: u8 = 5;

/// At most this many values: two hundred times what the largest published checkpoint's pickle has. It keeps a large
/// hostile file from costing tens of times its size in memory.
const MAX_VALUES: usize = 1 << 24;

type Step<T = ()> = Result<T, String>;

impl<'a> Pickle<'a> {
    /// Reads the pickle at the start of `input`, up to and including its `STOP`.
    ///
    /// # Errors
    /// If it is not a pickle of protocol 0 to 5, is cut short, or refers to what is not there.
    pub fn read(input: &'a [u8]) -> Result<Self, PickleError> {
        let mut machine = Machine {
            input,
            at: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Memo::default(),
        };
        loop {
            let offset = machine.at;
            let fail = |opcode, reason| PickleError { offset, opcode, reason };
            let opcode = machine.byte().map_err(|reason| fail("end of file", reason))?;
            match machine.step(opcode) {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Pickle { nodes: machine.nodes, root, consumed: machine.at }),
                Err(reason) => return Err(fail(name(opcode), reason)),
            }
        }
    }
}

struct Machine<'a> {
    input: &'a [u8],
    /// The next byte to read.
    at: usize,
    nodes: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at which a `MARK` lies.
    marks: Vec<usize>,
    memo: Memo,
}

/// The memo: dense as picklers number it, and whatever else a file may say.
#[derive(Default)]
struct Memo {
    dense: Vec<Id>,
    sparse: HashMap<u64, Id>,
}

impl Memo {
    fn put(&mut self, index: u64, id: Id) {
        let next = self.dense.len() as u64;
        if index < next {
            self.dense[index as usize] = id;
        } else if index == next {
            self.dense.push(id);
            self.sparse.remove(&index);
        } else {
            self.sparse.insert(index, id);
        }
    }

    fn get(&self, index: u64) -> Step<Id> {
        let dense = usize::try_from(index).ok().and_then(|index| self.dense.get(index));
        dense
            .or_else(|| self.sparse.get(&index))
            .copied()
            .ok_or_else(|| format!("nothing is memoised as {index}"))
    }

    fn len(&self) -> u64 {
        (self.dense.len() + self.sparse.len()) as u64
    }
}

impl<'a> Machine<'a> {
    /// Carries out one opcode; `Some` if it was the last.
    fn step(&mut self, opcode: u8) -> Step<Option<Id>> {
        match opcode {
            STOP => return self.pop().map(Some),
            PROTO => {
                let version = self.byte()?;
                if version > MAX_PROTOCOL {
                    return Err(format!("protocol {version}; 0 to {MAX_PROTOCOL} are read"));
                }
            }
            // A frame only says how much to read at once.
            FRAME => {
                let length = self.length(8)?;
                self.left_at_least(length)?;
            }

            NONE => self.push(Value::None)?,
            NEWTRUE => self.push(Value::Bool(true))?,
            NEWFALSE => self.push(Value::Bool(false))?,
            INT => {
                let value = text::int(self.line()?)?;
                self.push(value)?;
            }
            LONG => {
                let value = text::long(self.line()?)?;
                self.push(value)?;
            }
            BININT => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            BININT1 => {
                let value = self.byte()?;
                self.push(Value::Int(value.into()))?;
            }
            BININT2 => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            LONG1 | LONG4 => {
                let bytes = self.counted(if opcode == LONG1 { 1 } else { 4 })?;
                self.push(text::integer(Cow::Borrowed(bytes)))?;
            }
            FLOAT => {
                let value = text::float(self.line()?)?;
                self.push(Value::Float(value))?;
            }
            BINFLOAT => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(value))?;
            }

            STRING => {
                let value = text::quoted(self.line()?)?;
                self.push(Value::OldStr(value))?;
            }
            SHORT_BINSTRING | BINSTRING => {
                let bytes = self.counted(if opcode == SHORT_BINSTRING { 1 } else { 4 })?;
                self.push(Value::OldStr(Cow::Borrowed(bytes)))?;
            }
            UNICODE => {
                let value = text::raw_unicode(self.line()?)?;
                self.push(Value::Str(value))?;
            }
            SHORT_BINUNICODE | BINUNICODE | BINUNICODE8 => {
                let bytes = self.counted(match opcode {
                    SHORT_BINUNICODE => 1,
                    BINUNICODE => 4,
                    _ => 8,
                })?;
                self.push(Value::Str(String::from_utf8_lossy(bytes)))?;
            }
            SHORT_BINBYTES | BINBYTES | BINBYTES8 | BYTEARRAY8 => {
                let bytes = self.counted(match opcode {
                    SHORT_BINBYTES => 1,
                    BINBYTES => 4,
                    _ => 8,
                })?;
                self.push(Value::Bytes(Cow::Borrowed(bytes)))?;
            }

            EMPTY_LIST => self.push(Value::List(Vec::new()))?,
            EMPTY_TUPLE => self.push(Value::Tuple(Box::default()))?,
            EMPTY_DICT => self.push(Value::Dict(Vec::new()))?,
            EMPTY_SET => self.push(Value::Set(Vec::new()))?,
            LIST => {
                let items = self.marked()?;
                self.push(Value::List(items))?;
            }
            TUPLE => {
                let items = self.marked()?;
                self.push(Value::Tuple(items.into()))?;
            }
            FROZENSET => {
                let items = self.marked()?;
                self.push(Value::Set(items))?;
            }
            DICT => {
                let pairs = paired(&self.marked()?)?;
                self.push(Value::Dict(pairs))?;
            }
            TUPLE1 | TUPLE2 | TUPLE3 => {
                let items = self.pop_many(usize::from(opcode - TUPLE1) + 1)?;
                self.push(Value::Tuple(items.into()))?;
            }
            APPEND => {
                let item = self.pop()?;
                self.add_items(&[item])?;
            }
            APPENDS | ADDITEMS => {
                let items = self.marked()?;
                self.add_items(&items)?;
            }
            SETITEM => {
                let pair = self.pop_many(2)?;
                self.add_pairs(&pair)?;
            }
            SETITEMS => {
                let pairs = self.marked()?;
                self.add_pairs(&pairs)?;
            }

            MARK => self.marks.push(self.stack.len()),
            POP if self.marks.last() == Some(&self.stack.len()) => {
                self.marks.pop();
            }
            POP => {
                self.pop()?;
            }
            POP_MARK => {
                self.marked()?;
            }
            DUP => {
                let top = self.top()?;
                self.stack.push(top);
            }
            PUT => {
                let index = text::index(self.line()?)?;
                self.put(index)?;
            }
            BINPUT => {
                let index = self.byte()?;
                self.put(index.into())?;
            }
            LONG_BINPUT => {
                let index = u32::from_le_bytes(self.array()?);
                self.put(index.into())?;
            }
            MEMOIZE => self.put(self.memo.len())?,
            GET => {
                let index = text::index(self.line()?)?;
                self.stack.push(self.memo.get(index)?);
            }
            BINGET => {
                let index = self.byte()?;
                self.stack.push(self.memo.get(index.into())?);
            }
            LONG_BINGET => {
                let index = u32::from_le_bytes(self.array()?);
                self.stack.push(self.memo.get(index.into())?);
            }

            GLOBAL => {
                let global = self.global_lines()?;
                self.push(global)?;
            }
            STACK_GLOBAL => {
                let names = self.pop_many(2)?;
                if !names.iter().all(|&id| matches!(self.value(id), Value::Str(_))) {
                    return Err("module and name must be text".into());
                }
                self.push(Value::Global { module: names[0], name: names[1] })?;
            }
            REDUCE | NEWOBJ => {
                let parts = self.pop_many(2)?;
                self.call(parts[0], parts[1], None)?;
            }
            NEWOBJ_EX => {
                let parts = self.pop_many(3)?;
                if !matches!(self.value(parts[2]), Value::Dict(_)) {
                    return Err("the arguments by name are no dict".into());
                }
                self.call(parts[0], parts[1], Some(parts[2]))?;
            }
            INST => {
                let global = self.global_lines()?;
                let args = self.marked()?;
                let class = self.node(global)?;
                let args = self.node(Value::Tuple(args.into()))?;
                self.call(class, args, None)?;
            }
            OBJ => {
                let parts = self.marked()?;
                let (&class, args) = parts.split_first().ok_or("no class lies above the mark")?;
                let args = self.node(Value::Tuple(args.into()))?;
                self.call(class, args, None)?;
            }
            BUILD => {
                let state = self.pop()?;
                let target = self.top()?;
                match &mut self.nodes[target.0 as usize] {
                    Value::Object(object) if object.state.is_none() => object.state = Some(state),
                    Value::Object(_) => return Err("the object has its state already".into()),
                    _ => return Err("only an object takes a state".into()),
                }
            }
            PERSID => {
                let line = self.line()?;
                let id = self.node(Value::Str(String::from_utf8_lossy(line)))?;
                self.push(Value::Persistent(id))?;
            }
            BINPERSID => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))?;
            }

            EXT1 | EXT2 | EXT4 => {
                return Err(
                    "a code from a program's own extension registry, which no file can explain".into()
                );
            }
            NEXT_BUFFER | READONLY_BUFFER => {
                return Err("its data was written somewhere else (out of band)".into());
            }
            _ => return Err(format!("{opcode:#04x} is no opcode; this is not a pickle, or a damaged one")),
        }
        Ok(None)
    }

    fn byte(&mut self) -> Step<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    /// `count` bytes, if there are as many.
    fn take(&mut self, count: u64) -> Step<&'a [u8]> {
        let rest = self.left_at_least(count)?;
        let (taken, _) = rest.split_at(count as usize);
        self.at += taken.len();
        Ok(taken)
    }

    /// What is left of the input, if that is at least `count` bytes.
    fn left_at_least(&self, count: u64) -> Step<&'a [u8]> {
        let rest = &self.input[self.at..];
        if count > rest.len() as u64 {
            return Err(format!("needs {count} bytes where {} are left", rest.len()));
        }
        Ok(rest)
    }

    /// A length of `width` bytes, little-endian.
    fn length(&mut self, width: u64) -> Step<u64> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// Bytes after their number, which takes `width` bytes.
    fn counted(&mut self, width: u64) -> Step<&'a [u8]> {
        let length = self.length(width)?;
        self.take(length)
    }

    /// The input up to the next line feed, which is skipped.
    fn line(&mut self) -> Step<&'a [u8]> {
        let rest = &self.input[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or("the line does not end")?;
        self.at += end + 1;
        Ok(&rest[..end])
    }

    fn node(&mut self, value: Value<'a>) -> Step<Id> {
        if self.nodes.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.nodes.push(value);
        Ok(Id(self.nodes.len() as u32 - 1))
    }

    fn push(&mut self, value: Value<'a>) -> Step {
        let id = self.node(value)?;
        self.stack.push(id);
        Ok(())
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.nodes[id.0 as usize]
    }

    /// How many values lie above the last mark; only these can be taken.
    fn above_mark(&self) -> usize {
        self.stack.len() - self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Id> {
        match self.above_mark() {
            0 => Err("the stack is empty".into()),
            _ => Ok(self.stack[self.stack.len() - 1]),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Takes the `count` topmost values, lowest first.
    fn pop_many(&mut self, count: usize) -> Step<Vec<Id>> {
        match self.above_mark() {
            have if have < count => Err(format!("needs {count} values where the stack has {have}")),
            _ => Ok(self.stack.drain(self.stack.len() - count..).collect()),
        }
    }

    /// Takes everything above the last mark, and the mark.
    fn marked(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.drain(mark..).collect())
    }

    fn put(&mut self, index: u64) -> Step {
        let top = self.top()?;
        self.memo.put(index, top);
        Ok(())
    }

    fn add_items(&mut self, new: &[Id]) -> Step {
        let target = self.top()?;
        match &mut self.nodes[target.0 as usize] {
            Value::List(items) | Value::Set(items) => items.extend_from_slice(new),
            Value::Object(object) => object.items.extend_from_slice(new),
            _ => return Err("only a list, a set or an object takes items".into()),
        }
        Ok(())
    }

    fn add_pairs(&mut self, flat: &[Id]) -> Step {
        let new = paired(flat)?;
        let target = self.top()?;
        match &mut self.nodes[target.0 as usize] {
            Value::Dict(pairs) => pairs.extend(new),
            Value::Object(object) => object.pairs.extend(new),
            _ => return Err("only a dict or an object takes keys".into()),
        }
        Ok(())
    }

    fn global_lines(&mut self) -> Step<Value<'a>> {
        let module = self.line()?;
        let name = self.line()?;
        let module = self.node(Value::Str(String::from_utf8_lossy(module)))?;
        let name = self.node(Value::Str(String::from_utf8_lossy(name)))?;
        Ok(Value::Global { module, name })
    }

    fn call(&mut self, class: Id, args: Id, kwargs: Option<Id>) -> Step {
        if !matches!(self.value(class), Value::Global { .. } | Value::Object(_) | Value::Persistent(_)) {
            return Err("what is called is neither a name nor an object".into());
        }
        if !matches!(self.value(args), Value::Tuple(_)) {
            return Err("the arguments are no tuple".into());
        }
        let object = Object { class, args, kwargs, state: None, items: Vec::new(), pairs: Vec::new() };
        self.push(Value::Object(Box::new(object)))
    }
}

fn paired(flat: &[Id]) -> Step<Vec<(Id, Id)>> {
    let (pairs, rest) = flat.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("a key has no value".into());
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}
