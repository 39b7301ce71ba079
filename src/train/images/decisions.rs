//! What was drawn for the views of a batch, as numbers that a device can work through for all images at once.
//!
//! An image has at most one turn of the hue; its other colour operations are all blends `from + factor·(level − from)`,
//! where `from` is 0, the image's mean grey or each pixel's own. So each image's list becomes: blends, the hue, blends,
//! filled up with blends of factor 1 which change nothing.

use crate::data::augment::{AugmentParameters, ColorOp};
use crate::data::resize::vertical_first;

/// Whole numbers of an image, in this order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    /// Which image.
    Index,
    Top,
    Left,
    /// Rows of the crop.
    Height,
    /// Columns of the crop.
    Width,
    /// Whether rows are resized before columns.
    VerticalFirst,
    Flip,
    /// Whether the hue is turned at all; turned by nothing, colours are rounded all the same.
    TurnsHue,
    /// Added to the hue, modulo 256.
    HueShift,
}

/// How many [`Field`]s there are.
pub(super) const FIELDS: usize = 9;
/// Numbers of a blend: its factor, and the shares of mean grey and own grey in what it starts from.
pub(super) const BLEND: usize = 3;

/// The views of a batch of B images.
pub(super) struct Decisions {
    /// B.
    pub batch: usize,
    /// `[B, FIELDS]`.
    pub fields: Vec<i64>,
    /// Blends of an image before and after its hue is turned; the same number for all images.
    pub before: usize,
    /// See `before`.
    pub after: usize,
    /// `[B, before + after, BLEND]`.
    pub blends: Vec<f32>,
    /// Whether any image's rows are resized first.
    pub any_vertical_first: bool,
    /// Whether any image's hue is turned.
    pub any_hue: bool,
    /// Whether any image is flipped.
    pub any_flip: bool,
}

impl Decisions {
    /// Those of `drawn` for the images `indices`, for views of `size`.
    pub fn new(indices: &[u32], drawn: &[AugmentParameters], size: u32) -> Self {
        let hue_at =
            |view: &AugmentParameters| view.color.iter().position(|op| matches!(op, ColorOp::Hue(_)));
        let split = |view: &AugmentParameters| {
            let at = hue_at(view);
            let before = at.unwrap_or(view.color.len());
            (before, view.color.len() - before - usize::from(at.is_some()))
        };
        let before = drawn.iter().map(|view| split(view).0).max().unwrap_or(0);
        let after = drawn.iter().map(|view| split(view).1).max().unwrap_or(0);
        let mut decisions = Decisions {
            batch: indices.len(),
            fields: Vec::with_capacity(indices.len() * FIELDS),
            before,
            after,
            blends: Vec::with_capacity(indices.len() * (before + after) * BLEND),
            any_vertical_first: false,
            any_hue: false,
            any_flip: false,
        };
        for (&index, view) in indices.iter().zip(drawn) {
            let at = hue_at(view);
            let shift = at.map_or(0, |at| hue_shift(view.color[at]));
            let crop = view.crop;
            let vertical_first = vertical_first(crop, size, size);
            decisions.fields.extend([
                i64::from(index),
                i64::from(crop.top),
                i64::from(crop.left),
                i64::from(crop.height),
                i64::from(crop.width),
                i64::from(vertical_first),
                i64::from(view.flip),
                i64::from(at.is_some()),
                i64::from(shift),
            ]);
            let (first, rest) = view.color.split_at(split(view).0);
            let last = if at.is_some() { &rest[1..] } else { rest };
            for (ops, slots) in [(first, before), (last, after)] {
                let blends = ops.iter().map(|&op| blend(op)).chain(std::iter::repeat([1.0, 0.0, 0.0]));
                decisions.blends.extend(blends.take(slots).flatten());
            }
            decisions.any_vertical_first |= vertical_first;
            decisions.any_hue |= at.is_some();
            decisions.any_flip |= view.flip;
        }
        decisions
    }
}

/// Factor, share of the mean grey, share of the own grey.
fn blend(op: ColorOp) -> [f32; BLEND] {
    match op {
        ColorOp::Brightness(factor) => [factor as f32, 0.0, 0.0],
        ColorOp::Contrast(factor) => [factor as f32, 1.0, 0.0],
        ColorOp::Saturation(factor) => [factor as f32, 0.0, 1.0],
        ColorOp::Grayscale => [0.0, 0.0, 1.0],
        ColorOp::Hue(_) => unreachable!("the hue is no blend, and an image has one at most"),
    }
}

fn hue_shift(op: ColorOp) -> u8 {
    match op {
        ColorOp::Hue(turn) => ColorOp::hue_shift(turn),
        _ => 0,
    }
}
