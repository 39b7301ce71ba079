//! One batch row against its negatives: rows of the bank are fetched sixteen at a time, scored, weighed and added
//! to the gradient while they are in the nearest cache. What the weights are is the objective's business.

use super::Problem;
use crate::bank::Negatives;
use crate::bank::kernels::rows::{accumulate16, dot16};
use crate::simd::{Kernel, LANES, Simd, prefetch};

/// Decides what sixteen scores mean.
pub(super) trait Visitor: Send {
    /// Whether the rows are added up at all.
    const GRADIENT: bool;

    /// Sees the next `indices.len()` ≤ 16 similarities `v·M[j]` and says how their rows enter the gradient: in
    /// `weights` (zero beyond the indices), and as the factor that what was added before must be multiplied by.
    fn visit<S: Simd>(
        &mut self,
        simd: S,
        similarities: &[f32; LANES],
        indices: &[u32],
        weights: &mut [f32; LANES],
    ) -> f32;
}

/// Runs `visitor` over the negatives of batch row `b` and adds `Σ weight·row` to `gradient` `[D]`.
pub(super) struct Gather<'a, 'g, V> {
    pub problem: &'a Problem<'a>,
    pub negatives: &'a Negatives<'a>,
    pub b: usize,
    pub visitor: V,
    pub gradient: &'g mut [f32],
}

impl<V: Visitor> Kernel for Gather<'_, '_, V> {
    /// The visitor, with what it has gathered.
    type Output = V;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> V {
        let bank = self.problem.bank;
        let query = self.problem.feature(self.b);
        let mut source = self.negatives.of_row(self.b, self.problem.batch());
        let (mut indices, mut next) = ([0u32; LANES], [0u32; LANES]);
        let mut weights = [0.0; LANES];
        let mut count = source.next(&mut indices);
        while count > 0 {
            // The next rows travel while these are worked on.
            let next_count = source.next(&mut next);
            for &index in &next[..next_count] {
                prefetch(bank.row(index as usize));
            }
            // Lanes without a row repeat the first one, with weight 0.
            let mut rows: [&[f32]; LANES] = [bank.row(indices[0] as usize); LANES];
            for (row, &index) in rows.iter_mut().zip(&indices[..count]) {
                *row = bank.row(index as usize);
            }
            let similarities = dot16(simd, query, &rows);
            let factor = self.visitor.visit(simd, &similarities, &indices[..count], &mut weights);
            if V::GRADIENT {
                if factor != 1.0 {
                    self.gradient.iter_mut().for_each(|g| *g *= factor);
                }
                accumulate16(simd, self.gradient, &weights, &rows);
            }
            (indices, count) = (next, next_count);
        }
        self.visitor
    }
}
