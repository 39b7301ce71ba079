//! numpy's arrays and numbers, recognised among the inert records of a pickle.

use std::borrow::Cow;

use super::{Id, Pickle, Value};

/// Where numpy has kept its reconstructors; 2.0 moved them.
const MULTIARRAY: [&str; 2] = ["numpy.core.multiarray", "numpy._core.multiarray"];
const NUMERIC: [&str; 2] = ["numpy.core.numeric", "numpy._core.numeric"];

/// A type of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dtype {
    /// numpy's letter: `b` Boolean, `i` signed, `u` unsigned, `f` floating, `c` complex.
    pub kind: char,
    /// Bytes a number takes.
    pub size: usize,
    /// Whether the most significant byte comes first.
    pub big_endian: bool,
}

impl Dtype {
    /// Bytes, as images have them.
    pub const U8: Dtype = Dtype { kind: 'u', size: 1, big_endian: false };
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let order = if self.big_endian { "big-endian " } else { "" };
        let kind = match self.kind {
            'b' => return f.write_str("bool"),
            'i' => "int",
            'u' => "uint",
            'f' => "float",
            _ => "complex",
        };
        write!(f, "{order}{kind}{}", self.size * 8)
    }
}

/// An array as numpy pickles it.
#[derive(Clone, Debug, PartialEq)]
pub struct NdArray<'p> {
    /// Type of the numbers.
    pub dtype: Dtype,
    /// Extents.
    pub shape: Vec<usize>,
    /// Whether the first axis runs fastest, not the last.
    pub fortran: bool,
    /// The numbers: exactly `size × product(shape)` bytes.
    pub data: Cow<'p, [u8]>,
}

/// The array at `id`.
///
/// # Errors
/// If there is none, or it does not hold together; in words that continue "data is ...".
pub fn ndarray<'p>(pickle: &'p Pickle<'_>, id: Id) -> Result<NdArray<'p>, String> {
    let no_array = || format!("{}, not a numpy array", pickle.describe(id));
    let object = pickle.object(id).ok_or_else(no_array)?;
    let class = pickle.global(object.class).ok_or_else(no_array)?;
    let malformed = |what: &str| format!("a numpy array whose {what} cannot be read");

    let (shape, dtype_id, fortran, data) = if class.is(&MULTIARRAY, "_reconstruct") {
        let state = object.state.and_then(|state| pickle.items(state)).ok_or_else(|| malformed("state"))?;
        let &[_version, shape, dtype, fortran, data] = state else { return Err(malformed("state")) };
        let fortran = pickle.int(fortran).ok_or_else(|| malformed("order"))? != 0;
        (shape, dtype, fortran, data)
    } else if class.is(&NUMERIC, "_frombuffer") {
        let args = pickle.items(object.args).unwrap_or_default();
        let &[data, dtype, shape, order] = args else { return Err(malformed("arguments")) };
        (shape, dtype, pickle.is_text(order, "F"), data)
    } else {
        return Err(no_array());
    };

    let extents = pickle.items(shape).ok_or_else(|| malformed("shape"))?;
    let shape = extents
        .iter()
        .map(|&extent| pickle.int(extent).and_then(|extent| usize::try_from(extent).ok()))
        .collect::<Option<Vec<usize>>>()
        .ok_or_else(|| malformed("shape"))?;
    let dtype = dtype(pickle, dtype_id)?;
    let data = pickle.bytes(data).ok_or_else(|| malformed("data"))?;
    let expected = shape.iter().try_fold(dtype.size, |bytes, &extent| bytes.checked_mul(extent));
    if expected != Some(data.len()) {
        return Err(format!("a numpy array of {dtype} {shape:?} that holds {} bytes", data.len()));
    }
    Ok(NdArray { dtype, shape, fortran, data })
}

/// The number that a numpy scalar holds, as Python's own; `None` if the value at `id` is no such thing.
pub fn scalar(pickle: &Pickle<'_>, id: Id) -> Option<Value<'static>> {
    let object = pickle.object(id)?;
    let args = pickle.items(object.args)?;
    let (&[dtype_id, data], true) = (args, pickle.global(object.class)?.is(&MULTIARRAY, "scalar")) else {
        return None;
    };
    let dtype = dtype(pickle, dtype_id).ok()?;
    let data = pickle.bytes(data)?;
    if data.len() != dtype.size {
        return None;
    }
    let mut bytes = data.into_owned();
    if dtype.big_endian {
        bytes.reverse();
    }
    Some(match (dtype.kind, bytes.as_slice()) {
        ('b', &[byte]) => Value::Bool(byte != 0),
        ('i', _) => super::text::integer(Cow::Owned(bytes)),
        ('u', _) => {
            bytes.push(0);
            super::text::integer(Cow::Owned(bytes))
        }
        ('f', &[a, b]) => Value::Float(half::f16::from_le_bytes([a, b]).into()),
        ('f', &[a, b, c, d]) => Value::Float(f32::from_le_bytes([a, b, c, d]).into()),
        ('f', &[a, b, c, d, e, f, g, h]) => Value::Float(f64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => return None,
    })
}

/// The dtype at `id`.
fn dtype(pickle: &Pickle<'_>, id: Id) -> Result<Dtype, String> {
    let unread = || "a numpy array of a type that cannot be read".to_string();
    let object = pickle.object(id).ok_or_else(unread)?;
    if !pickle.global(object.class).is_some_and(|class| class.is(&["numpy"], "dtype")) {
        return Err(unread());
    }
    let code = pickle.items(object.args).and_then(|args| args.first()).and_then(|&code| pickle.text(code));
    let code = code.ok_or_else(unread)?;
    let mut letters = code.chars();
    let size = match (letters.next(), letters.as_str()) {
        (Some('b'), "1") => 1,
        (Some('i' | 'u'), size @ ("1" | "2" | "4" | "8")) => usize::from(size.as_bytes()[0] - b'0'),
        (Some('f'), "2") => 2,
        (Some('f'), "4") => 4,
        (Some('f' | 'c'), "8") => 8,
        (Some('c'), "16") => 16,
        _ => return Err(format!("a numpy array of {:?}, which are no plain numbers", short(&code))),
    };
    // The state of a dtype starts with a version and the byte order; a plain one has neither sub-array nor fields.
    let order = match object.state.map(|state| pickle.items(state)) {
        None => None,
        Some(Some(&[_, order, subarray, names, fields, ..])) => {
            if [subarray, names, fields].iter().any(|&part| *pickle.get(part) != Value::None) {
                return Err("a numpy array of records, which are no plain numbers".into());
            }
            Some(order)
        }
        Some(_) => return Err(unread()),
    };
    let big_endian = order.is_some_and(|order| pickle.is_text(order, ">"));
    Ok(Dtype { kind: code.chars().next().unwrap_or('?'), size, big_endian })
}

fn short(text: &str) -> String {
    text.chars().take(20).collect()
}
