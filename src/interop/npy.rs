//! NumPy's file format for one array, `.npy`, version 1.0, written.

use std::io::{self, ErrorKind, Write};

/// What every file begins with: the magic number and version 1.0.
const MAGIC: &[u8; 8] = b"\x93NUMPY\x01\x00";

/// The values begin at a multiple of this many bytes, so that the file can be mapped.
const ALIGNMENT: usize = 64;

/// Values converted at a time.
const PIECE: usize = 1 << 14;

/// Writes `values`, an array of `shape` in C order (the last dimension varies fastest), as `<f4`. An empty shape is a
/// scalar's. Best with a writer that takes large pieces well; nothing is flushed.
///
/// # Errors
/// If `shape` and the number of values disagree, the shape has thousands of dimensions ([`ErrorKind::InvalidInput`];
/// nothing is written then), or `out` refuses.
pub fn write(out: &mut impl Write, shape: &[usize], values: &[f32]) -> io::Result<()> {
    let invalid = |message: String| io::Error::new(ErrorKind::InvalidInput, message);
    let count = shape.iter().try_fold(1_usize, |count, &size| count.checked_mul(size));
    if count != Some(values.len()) {
        return Err(invalid(format!("an array {shape:?} does not have {} values", values.len())));
    }
    begin(out, shape)?;
    let mut bytes = Vec::with_capacity(4 * PIECE.min(values.len()));
    for piece in values.chunks(PIECE) {
        bytes.clear();
        bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Writes what stands before the values of an array of `shape`; they are the caller's to write, as `<f4` in C order.
///
/// # Errors
/// If the shape has thousands of dimensions, or `out` refuses.
pub fn begin(out: &mut impl Write, shape: &[usize]) -> io::Result<()> {
    let header = header(shape);
    let length = u16::try_from(header.len()).map_err(|_| {
        io::Error::new(ErrorKind::InvalidInput, format!("{} dimensions are too many", shape.len()))
    })?;
    out.write_all(MAGIC)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(header.as_bytes())
}

/// A Python dictionary, then spaces up to the alignment and an end of line.
fn header(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    // Python's tuple of one needs its comma.
    let comma = if sizes.len() == 1 { "," } else { "" };
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}{comma}), }}", sizes.join(", "));
    let before = MAGIC.len() + size_of::<u16>();
    let padded = (before + header.len() + 1).next_multiple_of(ALIGNMENT) - before - 1;
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    header.push('\n');
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(shape: &[usize], values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, shape, values).unwrap();
        bytes
    }

    /// Byte for byte what `numpy.save` (2.4) writes for `numpy.array([[0, 1, -2.5]], "<f4")`.
    #[test]
    fn a_matrix_is_written_like_numpy_does() {
        let mut expected = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        expected.extend(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }");
        expected.resize(127, b' ');
        expected.push(b'\n');
        expected.extend(b"\x00\x00\x00\x00\x00\x00\x80\x3f\x00\x00\x20\xc0");
        assert_eq!(written(&[1, 3], &[0.0, 1.0, -2.5]), expected);
    }

    #[test]
    fn every_shape_has_an_aligned_header_and_all_values() {
        for (shape, tuple) in [
            (&[][..], "()"),
            (&[7], "(7,)"),
            (&[0, 128], "(0, 128)"),
            (&[2, 3, 4, 5], "(2, 3, 4, 5)"),
            (&[PIECE + 1, 2], "(16385, 2)"),
            (
                &[1; 30],
                "(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)",
            ),
        ] {
            let values: Vec<f32> = (0..shape.iter().product()).map(|i| i as f32 / 3.0).collect();
            let bytes = written(shape, &values);
            let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
            assert_eq!(start % ALIGNMENT, 0, "{shape:?}");
            let header = std::str::from_utf8(&bytes[10..start]).unwrap();
            assert!(header.contains(&format!("'shape': {tuple}, }}")) && header.ends_with('\n'), "{header}");
            let read: Vec<f32> =
                bytes[start..].as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            assert_eq!(read, values);
        }
    }

    #[test]
    fn shapes_that_cannot_be_are_refused_before_anything_is_written() {
        for (shape, values) in [
            (&[2, 3][..], &[0.0; 5][..]),
            (&[], &[]),
            (&[usize::MAX, usize::MAX], &[0.0]),
            (&[1; 30_000], &[0.0]),
        ] {
            let mut bytes = Vec::new();
            assert_eq!(write(&mut bytes, shape, values).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert!(bytes.is_empty());
        }
    }
}
