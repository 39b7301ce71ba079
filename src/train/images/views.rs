//! Pixels of views in tensor operations: cropping and resizing, colours, flipping; for all images of a batch at once.
//!
//! Levels are whole numbers held in floats, and each step rounds where `data::resize` and `data::augment` do: weights are
//! fixed-point and their sums, below 2³¹, exact in double precision; blends are single operations in single precision, as
//! on the CPU; divisions are by tensors, since a division by a plain number may become a product on a GPU.
//!
//! Shapes: B batch, H×W the images' size, s the views'.

use tch::{Device, Kind, Tensor, no_grad};

use super::decisions::{BLEND, Decisions, FIELDS, Field};
use crate::data::augment::hue_tables;
use crate::data::resize::{FRACTION_BITS, weights};
use crate::model::upload;

/// ITU-R 601 luma as PIL has it, in units of 2⁻¹⁶: exact in single precision, sums included.
const LUMA: [f32; 3] = [19595.0 / 65536.0, 38470.0 / 65536.0, 7471.0 / 65536.0];

/// Makes views of images of one size.
#[derive(Debug)]
pub(super) struct ViewMaker {
    size: i64,
    /// Resizing weights by the crop's columns less one: `[W, s, W]`, whole numbers.
    columns: Tensor,
    /// By the crop's rows less one: `[H, s, H]`.
    rows: Tensor,
    luma: Tensor,
    /// Pixels of a view, f64 `[1]`.
    count: Tensor,
    hues: Tensor,
    saturations: Tensor,
    shares: Tensor,
    orders: Tensor,
}

impl ViewMaker {
    pub fn new(width: u32, height: u32, size: u32, device: Device) -> Self {
        let tables = hue_tables();
        let on_device = |values: &[i32]| upload(values, &[values.len() as i64], device);
        ViewMaker {
            size: i64::from(size),
            columns: weights_by_extent(width, size, device),
            rows: weights_by_extent(height, size, device),
            luma: upload(&LUMA, &[3], device),
            count: upload(&[f64::from(size) * f64::from(size)], &[1], device),
            hues: on_device(&tables.hues),
            saturations: on_device(&tables.saturations),
            shares: on_device(&tables.shares),
            orders: upload(&tables.orders, &[256, 3], device),
        }
    }

    /// The views of images of `pixels` u8 `[N, H, W, 3]`: levels f32 `[B, s, s, 3]`.
    pub fn make(&self, pixels: &Tensor, decisions: &Decisions) -> Tensor {
        no_grad(|| {
            let batch = decisions.batch as i64;
            let fields = upload(&decisions.fields, &[batch, FIELDS as i64], pixels.device());
            let field = |field: Field| fields.select(1, field as i64);
            let mut levels = self.resized(pixels, &fields, decisions.any_vertical_first);
            let slots = decisions.before + decisions.after;
            let blends = upload(&decisions.blends, &[batch, slots as i64, BLEND as i64], pixels.device());
            let blend = |levels: Tensor, slot: usize| self.blend(&levels, &blends.select(1, slot as i64));
            levels = (0..decisions.before).fold(levels, blend);
            if decisions.any_hue {
                let turned = self.with_hue_turned(&levels, &field(Field::HueShift));
                levels = turned.where_self(&for_each_image(&field(Field::TurnsHue)).gt(0), &levels);
            }
            levels = (decisions.before..slots).fold(levels, blend);
            if decisions.any_flip {
                levels = levels.flip([2]).where_self(&for_each_image(&field(Field::Flip)).gt(0), &levels);
            }
            levels
        })
    }

    /// The crops, resized: f32 `[B, s, s, 3]`.
    fn resized(&self, pixels: &Tensor, fields: &Tensor, any_vertical_first: bool) -> Tensor {
        let field = |field: Field| fields.select(1, field as i64);
        // What lies beyond a crop has no weight, whatever it is.
        let places = |start: Field, extent: i64| {
            let places = field(start).unsqueeze(1) + Tensor::arange(extent, (Kind::Int64, pixels.device()));
            places.clamp_max(extent - 1)
        };
        let (height, width) = (pixels.size()[1], pixels.size()[2]);
        let crops = pixels.index(&[
            Some(field(Field::Index).view([-1, 1, 1])),
            Some(places(Field::Top, height).unsqueeze(2)),
            Some(places(Field::Left, width).unsqueeze(1)),
        ]);
        let crops = crops.to_kind(Kind::Double);
        let of = |weights: &Tensor, extent: Field| {
            weights.index_select(0, &(field(extent) - 1)).to_kind(Kind::Double)
        };
        let (columns, rows) = (of(&self.columns, Field::Width), of(&self.rows, Field::Height));
        let mut levels = self.along_rows(&self.along_columns(&crops, &columns), &rows);
        if any_vertical_first {
            let other = self.along_columns(&self.along_rows(&crops, &rows), &columns);
            let vertical_first = for_each_image(&field(Field::VerticalFirst)).gt(0);
            levels = other.where_self(&vertical_first, &levels);
        }
        levels.to_kind(Kind::Float)
    }

    /// `[B, h, W, 3]` to `[B, h, s, 3]` with weights `[B, s, W]`.
    fn along_columns(&self, levels: &Tensor, weights: &Tensor) -> Tensor {
        let (batch, height, width) = (levels.size()[0], levels.size()[1], levels.size()[2]);
        let columns = levels.permute([0, 2, 1, 3]).reshape([batch, width, height * 3]);
        rounded(weights.bmm(&columns)).view([batch, self.size, height, 3]).permute([0, 2, 1, 3])
    }

    /// `[B, H, w, 3]` to `[B, s, w, 3]` with weights `[B, s, H]`.
    fn along_rows(&self, levels: &Tensor, weights: &Tensor) -> Tensor {
        let (batch, height, width) = (levels.size()[0], levels.size()[1], levels.size()[2]);
        let rows = levels.reshape([batch, height, width * 3]);
        rounded(weights.bmm(&rows)).view([batch, self.size, width, 3])
    }

    /// Each pixel's own grey, `[B, s, s, 1]`.
    fn grey(&self, levels: &Tensor) -> Tensor {
        ((levels * &self.luma).sum_dim_intlist([3].as_slice(), true, Kind::Float) + 0.5).floor()
    }

    /// `from + factor·(level − from)`, clipped and truncated; `blends` `[B, BLEND]`.
    fn blend(&self, levels: &Tensor, blends: &Tensor) -> Tensor {
        let number = |which: i64| for_each_image(&blends.select(1, which));
        let (factor, of_mean, of_own) = (number(0), number(1), number(2));
        let grey = self.grey(levels);
        let sums = grey.sum_dim_intlist([1, 2, 3].as_slice(), true, Kind::Double);
        let mean = (sums / &self.count + 0.5).floor().to_kind(Kind::Float);
        let from = mean * of_mean + grey * of_own;
        let mut blended = (levels - &from) * factor + from;
        blended.clamp_(0.0, 255.0).floor()
    }

    /// To HSV, `shift` i64 `[B]` added to the hue, and back.
    fn with_hue_turned(&self, levels: &Tensor, shift: &Tensor) -> Tensor {
        let whole = levels.to_kind(Kind::Int);
        let channel = |channel: i64| whole.select(3, channel);
        let [r, g, b] = [0, 1, 2].map(channel);
        let (largest, smallest) = (whole.amax([3].as_slice(), false), whole.amin([3].as_slice(), false));
        let range = &largest - smallest;
        // Largest less middle channel: the three sum to largest, smallest and middle.
        let below = &largest * 3 - &range - whole.sum_dim_intlist([3].as_slice(), false, Kind::Int);
        let bit = |a: &Tensor, b: &Tensor| a.ge_tensor(b).to_kind(Kind::Int);
        let rank = bit(&r, &g) * 4 + bit(&g, &b) * 2 + bit(&r, &b);
        let hue = looked_up(&self.hues, &(rank * 65536 + &range * 256 + below));
        let saturation = looked_up(&self.saturations, &(&largest * 256 + range));
        let hue = (hue + shift.to_kind(Kind::Int).view([-1, 1, 1])).bitwise_and(255);
        let share = looked_up(&self.shares, &(&hue * 256 + &saturation)).to_kind(Kind::Double);

        let value = largest.to_kind(Kind::Double);
        // Powers of two scale exactly: these are the shifts of `ToRgb::convert`.
        let changing = ((&value * share + 2f64.powi(23)) * 2f64.powi(-24)).floor();
        let lost = &value * (-saturation.to_kind(Kind::Double) + 255.0) + 127.0;
        let smallest = (lost * f64::from(0x8081) * 2f64.powi(-23)).floor();
        let parts = Tensor::stack(&[value, changing, smallest], 3).to_kind(Kind::Float);
        let order = self.orders.index_select(0, &hue.reshape([-1])).view(&parts.size()[..]);
        parts.gather(3, &order, false)
    }
}

/// `values` `[B]` for all pixels of their images: `[B, 1, 1, 1]`.
fn for_each_image(values: &Tensor) -> Tensor {
    values.view([-1, 1, 1, 1])
}

/// The entries of `table` `[n]` at `places` of any shape.
fn looked_up(table: &Tensor, places: &Tensor) -> Tensor {
    table.index_select(0, &places.reshape([-1])).view(&places.size()[..])
}

/// Weighted sums in fixed point as levels: rounded half up, clipped at the upper end, which alone can be passed.
fn rounded(sums: Tensor) -> Tensor {
    let one = f64::from(1 << FRACTION_BITS);
    ((sums + one / 2.0) / one).floor().clamp_max(255.0)
}

/// For each number of positions from 1 to `longest`: their weights in each of `size` outputs, f32 `[longest, size, longest]`.
fn weights_by_extent(longest: u32, size: u32, device: Device) -> Tensor {
    let (width, outputs) = (longest as usize, size as usize);
    let mut all = vec![0.0f32; width * outputs * width];
    for (extent, matrix) in (1..=longest).zip(all.chunks_exact_mut(outputs * width)) {
        let weights = weights(extent, size);
        for (row, weights) in matrix.chunks_exact_mut(width).zip(weights.chunks_exact(extent as usize)) {
            // Whole numbers up to 2²², which single precision holds.
            row.iter_mut().zip(weights).for_each(|(to, &weight)| *to = weight as f32);
        }
    }
    upload(&all, &[i64::from(longest), i64::from(size), i64::from(longest)], device)
}
