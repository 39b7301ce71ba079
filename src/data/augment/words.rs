//! Pixels as 32-bit words, a block at a time: loops over words become vector instructions, loops over triples don't.

/// Bytes of a block of pixels `[.., 3]`.
pub(super) const BLOCK_BYTES: usize = 3 * BLOCK;

/// Pixels in a block: few enough to stay in the first-level cache.
pub(super) const BLOCK: usize = 256;

/// A block of pixels, `r | g << 8 | b << 16` each.
pub(super) type Words = [u32; BLOCK];

/// Makes `words` the pixels `[.., 3]`, at most [`BLOCK`]. The fourth byte of a word means nothing; words beyond the last
/// pixel become zero.
#[inline(always)]
pub(super) fn load(pixels: &[u8], words: &mut Words) {
    let count = pixels.len() / 3;
    if count < BLOCK {
        words[count..].fill(0);
    }
    // Four bytes are one instruction, three are not; behind the last pixel there is no fourth.
    for (word, bytes) in words.iter_mut().zip(pixels.windows(4).step_by(3)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    if let Some(&[r, g, b]) = pixels.last_chunk() {
        words[count - 1] = u32::from_le_bytes([r, g, b, 0]);
    }
}

/// Writes `words` to the pixels they came from.
#[inline(always)]
pub(super) fn store(words: &Words, pixels: &mut [u8]) {
    let last = (pixels.len() / 3).saturating_sub(1);
    // Again four bytes: the fourth is written over by the next pixel.
    for (i, word) in words.iter().enumerate().take(last) {
        pixels[3 * i..][..4].copy_from_slice(&word.to_le_bytes());
    }
    if let Some(pixel) = pixels.last_chunk_mut() {
        let [r, g, b, _] = words[last].to_le_bytes();
        *pixel = [r, g, b];
    }
}

/// The channels of a word.
#[inline(always)]
pub(super) fn channels(word: u32) -> [u32; 3] {
    [word & 0xFF, word >> 8 & 0xFF, word >> 16 & 0xFF]
}
