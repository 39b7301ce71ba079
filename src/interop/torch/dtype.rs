//! PyTorch's types of numbers and what they are called in files.

/// A type of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Dtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    F16,
    BF16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
    Complex32,
    Complex64,
    Complex128,
    F8E4M3,
    F8E5M2,
}

use Dtype::*;

/// Type, its name in Python, the storage class it had before storages lost their types, bytes a number takes, and
/// bytes that are turned together where the order differs.
const TABLE: [(Dtype, &str, &str, usize, usize); 18] = [
    (Bool, "bool", "BoolStorage", 1, 1),
    (U8, "uint8", "ByteStorage", 1, 1),
    (I8, "int8", "CharStorage", 1, 1),
    (U16, "uint16", "", 2, 2),
    (I16, "int16", "ShortStorage", 2, 2),
    (F16, "float16", "HalfStorage", 2, 2),
    (BF16, "bfloat16", "BFloat16Storage", 2, 2),
    (U32, "uint32", "", 4, 4),
    (I32, "int32", "IntStorage", 4, 4),
    (F32, "float32", "FloatStorage", 4, 4),
    (U64, "uint64", "", 8, 8),
    (I64, "int64", "LongStorage", 8, 8),
    (F64, "float64", "DoubleStorage", 8, 8),
    (Complex32, "complex32", "", 4, 2),
    (Complex64, "complex64", "ComplexFloatStorage", 8, 4),
    (Complex128, "complex128", "ComplexDoubleStorage", 16, 8),
    (F8E4M3, "float8_e4m3fn", "", 1, 1),
    (F8E5M2, "float8_e5m2", "", 1, 1),
];

impl Dtype {
    fn row(self) -> (Dtype, &'static str, &'static str, usize, usize) {
        TABLE[self as usize]
    }

    /// The name in Python, without `torch.`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Bytes a number takes.
    pub fn size(self) -> usize {
        self.row().3
    }

    /// Bytes that are turned together where the byte order differs: half of a complex number.
    pub(super) fn word(self) -> usize {
        self.row().4
    }

    /// The type called `name` in Python.
    pub(super) fn named(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The type of a storage class; an untyped storage is one of bytes.
    pub(super) fn of_storage(class: &str) -> Option<Self> {
        match class {
            "UntypedStorage" => Some(U8),
            _ => TABLE.iter().find(|row| !class.is_empty() && row.2 == class).map(|row| row.0),
        }
    }

    /// The storage class in Python, `torch.` left out; the youngest types have none.
    pub(super) fn storage_class(self) -> Option<&'static str> {
        Some(self.row().2).filter(|class| !class.is_empty())
    }

    /// The type that safetensors means by `dtype`.
    pub fn of_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        use safetensors::Dtype as S;
        Some(match dtype {
            S::BOOL => Bool,
            S::U8 => U8,
            S::I8 => I8,
            S::U16 => U16,
            S::I16 => I16,
            S::F16 => F16,
            S::BF16 => BF16,
            S::U32 => U32,
            S::I32 => I32,
            S::F32 => F32,
            S::U64 => U64,
            S::I64 => I64,
            S::F64 => F64,
            S::C64 => Complex64,
            S::F8_E4M3 => F8E4M3,
            S::F8_E5M2 => F8E5M2,
            _ => return None,
        })
    }

    /// libtorch's name for the type, where `tch` has it.
    pub fn kind(self) -> Option<tch::Kind> {
        Some(match self {
            Bool => tch::Kind::Bool,
            U8 => tch::Kind::Uint8,
            I8 => tch::Kind::Int8,
            I16 => tch::Kind::Int16,
            F16 => tch::Kind::Half,
            BF16 => tch::Kind::BFloat16,
            I32 => tch::Kind::Int,
            F32 => tch::Kind::Float,
            I64 => tch::Kind::Int64,
            F64 => tch::Kind::Double,
            Complex32 => tch::Kind::ComplexHalf,
            Complex64 => tch::Kind::ComplexFloat,
            Complex128 => tch::Kind::ComplexDouble,
            F8E4M3 => tch::Kind::Float8e4m3fn,
            F8E5M2 => tch::Kind::Float8e5m2,
            U16 | U32 | U64 => return None,
        })
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_type() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index);
            assert_eq!(Dtype::named(row.1), Some(row.0));
            assert!(row.3 % row.4 == 0 && row.3 <= 16);
        }
        assert_eq!(Dtype::of_storage(""), None);
        assert_eq!(Dtype::of_storage("HalfStorage"), Some(F16));
    }
}
