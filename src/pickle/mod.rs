//! Python's pickles: a reader that runs nothing, and a [writer](Tree).
//!
//! A pickle is a program for a small stack machine; Python's own reader lets that program import and call
//! whatever it names. [`Pickle::read`] runs the same machine, protocols 0 to 5, but every import becomes a name
//! ([`Value::Global`]) and every call a record of what would have been called ([`Value::Object`]). Nothing else
//! can happen: which records mean something (a numpy array, an `OrderedDict`, a tensor) is decided afterwards by
//! the code that asked for the file, from a fixed set.
//!
//! What a file can cost is bounded by its own size. Every value is a node of one arena, made by one opcode and
//! shared by index, so memory grows with the file's length and never with the size of what it would unfold to;
//! cycles are as harmless as deep nests, and dropping recurses nowhere. Lengths are checked against the
//! bytes that are left before anything is allocated. Text and bytes are borrowed from the input.
//!
//! Values form a graph, not a tree: whoever walks one must not assume that the walk ends.

mod machine;
pub mod numpy;
mod opcode;
mod text;
mod value;
mod write;

#[cfg(test)]
mod tests;

pub use value::{Global, Id, Object, Pickle, Value};
pub use write::Tree;

/// Why a pickle cannot be read, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (byte {offset}, {opcode})")]
pub struct PickleError {
    /// Position of the opcode in the pickle, in bytes.
    pub offset: usize,
    /// The opcode's name as in Python's `pickletools`.
    pub opcode: &'static str,
    /// What is wrong with it.
    pub reason: String,
}
