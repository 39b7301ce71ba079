//! One batch row against its negatives: rows of the bank are fetched sixteen at a time, scored, weighed and added
//! to the gradient while they are in the nearest cache. What the weights are is the objective's business.

use super::Problem;
use crate::bank::kernels::rows::{accumulate16, dot16};
use crate::bank::{Negatives, Rows};
use crate::simd::{Element, Kernel, LANES, Simd, prefetch};

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

/// Runs `visitor` over the negatives of batch row `b` and adds `Σ weight·row` to `gradient` `[D]`. Returns the visitor, with
/// what it has gathered.
pub(super) fn gather<V: Visitor>(
    problem: &Problem,
    negatives: &Negatives,
    b: usize,
    visitor: V,
    gradient: &mut [f32],
) -> V {
    match problem.bank.stored() {
        Rows::Fp32(rows) => problem.isa.run(Gather { problem, rows, negatives, b, visitor, gradient }),
        Rows::Bf16(rows) => problem.isa.run(Gather { problem, rows, negatives, b, visitor, gradient }),
    }
}

struct Gather<'a, E, V> {
    problem: &'a Problem<'a>,
    /// Those of the problem's bank.
    rows: &'a [E],
    negatives: &'a Negatives<'a>,
    b: usize,
    visitor: V,
    gradient: &'a mut [f32],
}

impl<E: Element, V: Visitor> Kernel for Gather<'_, E, V> {
    type Output = V;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> V {
        let query = self.problem.feature(self.b);
        let dim = query.len();
        let row = |index: u32| &self.rows[index as usize * dim..][..dim];
        let mut source = self.negatives.of_row(self.b, self.problem.batch());
        let (mut indices, mut next) = ([0u32; LANES], [0u32; LANES]);
        let mut weights = [0.0; LANES];
        let mut count = source.next(&mut indices);
        while count > 0 {
            // The next rows travel while these are worked on.
            let next_count = source.next(&mut next);
            for &index in &next[..next_count] {
                prefetch(row(index));
            }
            // Lanes without a row repeat the first one, with weight 0.
            let mut rows: [&[E]; LANES] = [row(indices[0]); LANES];
            for (fetched, &index) in rows.iter_mut().zip(&indices[..count]) {
                *fetched = row(index);
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
