//! Products of one vector with scattered rows, any width; widths that are multiples of 16 are the fast case. Rows are
//! stored in whatever [`Element`] they are and become `f32` in the registers.

use crate::simd::{Element, Kernel, LANES, Simd};

/// `a · b`.
#[inline(always)]
pub(crate) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    dot4(simd, a, [b; 4])[0]
}

/// [`dot`] by itself, for an [`Isa`](crate::simd::Isa) to run.
pub(crate) struct Dot<'a>(pub &'a [f32], pub &'a [f32]);

impl Kernel for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        dot(simd, self.0, self.1)
    }
}

/// `query · row` for sixteen rows of the query's width.
#[inline(always)]
pub(crate) fn dot16<S: Simd, E: Element>(simd: S, query: &[f32], rows: &[&[E]; LANES]) -> [f32; LANES] {
    let mut scores = [0.0; LANES];
    for group in 0..LANES / 4 {
        let rows = [rows[4 * group], rows[4 * group + 1], rows[4 * group + 2], rows[4 * group + 3]];
        scores[4 * group..4 * group + 4].copy_from_slice(&dot4(simd, query, rows));
    }
    scores
}

/// Four independent sums, so that no addition waits for the one before.
#[inline(always)]
fn dot4<S: Simd, E: Element>(simd: S, query: &[f32], rows: [&[E]; 4]) -> [f32; 4] {
    let dim = query.len();
    let (chunks, tail) = query.as_chunks::<LANES>();
    let mut sums = [simd.splat(0.0); 4];
    let rows = rows.map(|row| &row[..dim]);
    let row_chunks = rows.map(|row| &row.as_chunks::<LANES>().0[..chunks.len()]);
    for c in 0..chunks.len() {
        let q = simd.load(&chunks[c]);
        for r in 0..4 {
            sums[r] = simd.mul_add(q, E::load(simd, &row_chunks[r][c]), sums[r]);
        }
    }
    if !tail.is_empty() {
        let q = f32::load_partial(simd, tail);
        for r in 0..4 {
            sums[r] = simd.mul_add(q, E::load_partial(simd, &rows[r][dim - tail.len()..]), sums[r]);
        }
    }
    [simd.sum(sums[0]), simd.sum(sums[1]), simd.sum(sums[2]), simd.sum(sums[3])]
}

/// `target += Σ weights[r]·rows[r]` over sixteen rows of the target's width.
///
/// The sixteen products are added up before they join the target, which then takes a sixteenth of the roundings.
#[inline(always)]
pub(crate) fn accumulate16<S: Simd, E: Element>(
    simd: S,
    target: &mut [f32],
    weights: &[f32; LANES],
    rows: &[&[E]; LANES],
) {
    let dim = target.len();
    let (chunks, tail) = target.as_chunks_mut::<LANES>();
    let n = chunks.len();
    let zero = simd.splat(0.0);
    let mut c = 0;
    while c + 1 < n {
        let mut even = [zero; 2];
        let mut odd = [zero; 2];
        for r in (0..LANES).step_by(2) {
            let w = [simd.splat(weights[r]), simd.splat(weights[r + 1])];
            let a = &rows[r].as_chunks::<LANES>().0[c..c + 2];
            let b = &rows[r + 1].as_chunks::<LANES>().0[c..c + 2];
            for i in 0..2 {
                even[i] = simd.mul_add(w[0], E::load(simd, &a[i]), even[i]);
                odd[i] = simd.mul_add(w[1], E::load(simd, &b[i]), odd[i]);
            }
        }
        for i in 0..2 {
            let sum = simd.add(even[i], odd[i]);
            simd.store(simd.add(simd.load(&chunks[c + i]), sum), &mut chunks[c + i]);
        }
        c += 2;
    }
    if c < n {
        let mut sum = zero;
        for r in 0..LANES {
            let row = E::load(simd, &rows[r].as_chunks::<LANES>().0[c]);
            sum = simd.mul_add(simd.splat(weights[r]), row, sum);
        }
        simd.store(simd.add(simd.load(&chunks[c]), sum), &mut chunks[c]);
    }
    let start = dim - tail.len();
    for (i, value) in tail.iter_mut().enumerate() {
        let mut sum = 0.0;
        for r in 0..LANES {
            sum += weights[r] * rows[r][start + i].to_f32();
        }
        *value += sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, stream};
    use crate::simd::Isa;
    use half::bf16;
    use rand::RngExt;

    struct Both<'a, E>(&'a [f32], &'a [&'a [E]; LANES], &'a [f32; LANES], Vec<f32>);
    impl<E: Element> Kernel for Both<'_, E> {
        type Output = ([f32; LANES], Vec<f32>);
        #[inline(always)]
        fn run<S: Simd>(mut self, simd: S) -> Self::Output {
            accumulate16(simd, &mut self.3, self.2, self.1);
            (dot16(simd, self.0, self.1), self.3)
        }
    }

    #[test]
    fn products_equal_the_naive_ones_for_any_width_on_every_path() {
        for isa in Isa::available() {
            for dim in [1, 2, 15, 16, 17, 31, 32, 48, 100, 128, 129] {
                let mut rng = stream(3, Purpose::Test, dim as u64, 0);
                let mut draw =
                    |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
                let (query, table, start) = (draw(dim), draw(dim * LANES), draw(dim));
                let weights: [f32; LANES] = draw(LANES).try_into().unwrap();
                let rows: [&[f32]; LANES] = std::array::from_fn(|r| &table[r * dim..][..dim]);
                let (dots, sums) = isa.run(Both(&query, &rows, &weights, start.clone()));
                let single = isa.run(Dot(&query, rows[3]));
                for r in 0..LANES {
                    let exact: f64 = (0..dim).map(|d| f64::from(query[d]) * f64::from(rows[r][d])).sum();
                    assert!((f64::from(dots[r]) - exact).abs() < 3e-6, "{isa:?} {dim}");
                }
                assert_eq!(single, dots[3], "{isa:?} {dim}");
                for d in 0..dim {
                    let exact = f64::from(start[d])
                        + (0..LANES).map(|r| f64::from(weights[r]) * f64::from(rows[r][d])).sum::<f64>();
                    assert!((f64::from(sums[d]) - exact).abs() < 3e-6, "{isa:?} {dim}");
                }
            }
        }
    }

    #[test]
    fn rows_in_bf16_give_the_bits_of_the_same_numbers_in_f32() {
        for isa in Isa::available() {
            for dim in [1, 15, 16, 17, 31, 32, 48, 100, 128, 129] {
                let mut rng = stream(4, Purpose::Test, dim as u64, 0);
                let mut draw =
                    |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
                let (query, table, start) = (draw(dim), draw(dim * LANES), draw(dim));
                let weights: [f32; LANES] = draw(LANES).try_into().unwrap();
                let stored: Vec<bf16> = table.iter().map(|&x| Element::from_f32(x)).collect();
                let same: Vec<f32> = stored.iter().map(|&x| Element::to_f32(x)).collect();
                let rows: [&[bf16]; LANES] = std::array::from_fn(|r| &stored[r * dim..][..dim]);
                let same: [&[f32]; LANES] = std::array::from_fn(|r| &same[r * dim..][..dim]);
                let found = isa.run(Both(&query, &rows, &weights, start.clone()));
                assert_eq!(found, isa.run(Both(&query, &same, &weights, start)), "{isa:?} {dim}");
            }
        }
    }
}
