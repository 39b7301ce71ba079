//! What has to hold of a WebP file before its decoder sees it.

use super::{Reason, check_size};

/// Refuses a file that is shorter than it or one of its chunks says, and one whose frames exceed the limits.
///
/// The decoder reads the pixels first and misses a lost EXIF chunk. It takes memory for a chunk, up to 4 GiB, before it
/// looks how much of it there is; and for a frame as its own header wants it, before it compares that with the canvas.
pub(super) fn check(bytes: &[u8], max_alloc: u64) -> Reason<()> {
    let end = u32_at(bytes, 4).map(|size| size + 8).filter(|&end| end <= bytes.len()).ok_or(TRUNCATED)?;
    check_chunks(bytes, 12..end, max_alloc)
}

const TRUNCATED: &str = "the file is truncated: shorter than its RIFF header, or a chunk of it, says";

/// Each chunk of `range`: four letters, its size, its content, and a byte to make that even.
fn check_chunks(bytes: &[u8], range: std::ops::Range<usize>, max_alloc: u64) -> Reason<()> {
    let mut at = range.start;
    while at + 8 <= range.end {
        let size = u32_at(bytes, at + 4).filter(|&size| size <= bytes.len() - at - 8).ok_or(TRUNCATED)?;
        let content = &bytes[at + 8..at + 8 + size];
        match &bytes[at..at + 4] {
            // 14 bits of width and of height behind a start code; the decoder keeps 1.5 bytes a pixel.
            b"VP8 " => {
                if let Some(&[w0, w1, h0, h1]) = content.get(6..10) {
                    let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3FFF);
                    check_size(side(w0, w1), side(h0, h1), 2, max_alloc)?;
                }
            }
            // A signature, then 14 bits each of width − 1 and height − 1; four bytes a pixel.
            b"VP8L" => {
                if let Some(bits) = u32_at(content, 1) {
                    let side = |shift: u32| (bits >> shift) as u32 & 0x3FFF;
                    check_size(side(0) + 1, side(14) + 1, 4, max_alloc)?;
                }
            }
            // A frame of an animation: 16 bytes about it, then its chunks.
            b"ANMF" => check_chunks(content, 16..content.len(), max_alloc)?,
            _ => {}
        }
        at += 8 + size.next_multiple_of(2);
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes([field[0], field[1], field[2], field[3]]) as usize)
}
