//! Candidates a tile at a time: their scores against the features, and their rows weighted and added up.

use tch::{Kind, Tensor};

use super::DeviceProblem;
use crate::cuda_kernels::Kernels;

/// Numbers in a tile's scores, and in the rows that are gathered for one: 64 MiB as f32.
const TILE: i64 = 1 << 24;
/// Numbers in the scores of a stretch of the bank: 32 MiB as f32.
const STRETCH: i64 = 1 << 23;

/// The rows that each feature is held against.
pub(super) struct Candidates<'a> {
    problem: &'a DeviceProblem<'a>,
    tile: i64,
    stretch: i64,
    kind: Kinds<'a>,
}

enum Kinds<'a> {
    /// Every row of the bank but these, ascending.
    Bank(&'a [u32]),
    /// As drawn, i32 `[B, K]`, each gathered.
    Gathered(&'a Tensor),
    /// As drawn, as the number of times f32 `[B, N]` that each row was: scored by a product with the whole bank.
    Counted(Tensor),
}

impl<'a> Candidates<'a> {
    /// Every row of the bank that is not `excluded`.
    pub fn whole_bank(problem: &'a DeviceProblem, excluded: &'a [u32]) -> Self {
        Candidates { problem, tile: TILE, stretch: STRETCH, kind: Kinds::Bank(excluded) }
    }

    /// The rows `negatives` i32 `[B, K]`, by whichever way moves least memory.
    pub fn drawn(problem: &'a DeviceProblem, negatives: &'a Tensor) -> Drawn<'a> {
        match problem.bank.kernels() {
            Some(kernels) if !problem.counting_moves_less(negatives, PASSES_OF_KERNELS) => {
                Drawn::ByKernels(kernels)
            }
            _ => Drawn::InTiles(Self::in_tiles(problem, negatives)),
        }
    }

    /// The same in tensor operations.
    pub fn in_tiles(problem: &'a DeviceProblem, negatives: &'a Tensor) -> Self {
        if problem.counting_moves_less(negatives, PASSES_IN_TILES) {
            Self::counted(problem, negatives)
        } else {
            Self::gathered(problem, negatives)
        }
    }

    pub(super) fn gathered(problem: &'a DeviceProblem, negatives: &'a Tensor) -> Self {
        Candidates { problem, tile: TILE, stretch: STRETCH, kind: Kinds::Gathered(negatives) }
    }

    pub(super) fn counted(problem: &'a DeviceProblem, negatives: &'a Tensor) -> Self {
        let size = [negatives.size()[0], problem.bank.len() as i64];
        let mut counts = Tensor::zeros(size, (Kind::Float, negatives.device()));
        // Ones add up exactly, in whatever order a device adds them.
        let ones = Tensor::ones(negatives.size(), (Kind::Float, negatives.device()));
        let _ = counts.scatter_add_(1, &negatives.to_kind(Kind::Int64), &ones);
        Candidates { problem, tile: TILE, stretch: STRETCH, kind: Kinds::Counted(counts) }
    }

    #[cfg(test)]
    pub fn in_small_tiles(self, numbers: i64) -> Self {
        Candidates { tile: numbers, stretch: numbers, ..self }
    }

    /// Shows each tile to `visit`, in order.
    pub fn each(&self, mut visit: impl FnMut(&Tile)) {
        let DeviceProblem { features, bank, .. } = *self.problem;
        let batch = features.size()[0];
        match &self.kind {
            Kinds::Gathered(negatives) => {
                let width = (self.tile / (batch * bank.dim() as i64)).max(1);
                for (start, count) in pieces(negatives.size()[1], width) {
                    let indices = negatives.narrow(1, start, count).reshape([-1]);
                    let rows = bank.rows().index_select(0, &indices).to_kind(Kind::Float);
                    let rows = rows.view([batch, count, bank.dim() as i64]);
                    visit(&Tile { features, source: Source::Gathered { rows, indices } });
                }
            }
            Kinds::Bank(_) | Kinds::Counted(_) => {
                let width = (self.stretch / batch).max(1);
                for (start, count) in pieces(bank.len() as i64, width) {
                    let rows = bank.rows().narrow(0, start, count).to_kind(Kind::Float);
                    let (counts, excluded) = match &self.kind {
                        Kinds::Counted(counts) => (Some(counts.narrow(1, start, count)), None),
                        Kinds::Bank(excluded) => (None, within(excluded, start, count, bank.device())),
                        Kinds::Gathered(_) => unreachable!("handled above"),
                    };
                    visit(&Tile { features, source: Source::Shared { rows, start, counts, excluded } });
                }
            }
        }
    }
}

/// In tensor operations each gathered number is read, written and read twice.
const PASSES_IN_TILES: f64 = 4.0;
/// A kernel reads it once; and where counting comes into question at all, the bank is so small that most reads end in the
/// GPU's cache. How much that is worth was guessed.
const PASSES_OF_KERNELS: f64 = 0.5;

/// Whether it moves fewer numbers to score all N rows and count which were drawn than to gather B·K rows of D in so many
/// passes over them: each score of a whole product goes through some eight operations.
fn counting_moves_less(batch: i64, n: i64, dim: i64, k: i64, passes: f64) -> bool {
    let counts = batch * n;
    counts <= 1 << 26 && ((8 * counts + 2 * n * dim) as f64) < passes * (batch * k * dim) as f64
}

impl DeviceProblem<'_> {
    fn counting_moves_less(&self, negatives: &Tensor, passes: f64) -> bool {
        let (batch, k) = (negatives.size()[0], negatives.size()[1]);
        assert_eq!(batch, self.batch(), "negatives are [B, K]");
        counting_moves_less(batch, self.bank.len() as i64, self.bank.dim() as i64, k, passes)
    }
}

/// `0..length` in pieces of `width`: where each starts and how long it is.
fn pieces(length: i64, width: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..length).step_by(width as usize).map(move |start| (start, width.min(length - start)))
}

/// Those of the ascending `excluded` rows that lie in `start..start + count`, from `start` on.
fn within(excluded: &[u32], start: i64, count: i64, device: tch::Device) -> Option<Tensor> {
    let first = excluded.partition_point(|&row| i64::from(row) < start);
    let last = excluded.partition_point(|&row| i64::from(row) < start + count);
    let here: Vec<i64> = excluded[first..last].iter().map(|&row| i64::from(row) - start).collect();
    (!here.is_empty()).then(|| Tensor::from_slice(&here).to_device(device))
}

/// Who works on the candidates that were drawn.
pub(super) enum Drawn<'a> {
    /// One of our kernels, all of them at once.
    ByKernels(&'a Kernels),
    /// Tensor operations, a tile at a time.
    InTiles(Candidates<'a>),
}

/// Some candidates t of each feature.
pub(super) struct Tile<'a> {
    features: &'a Tensor,
    source: Source,
}

enum Source {
    /// `rows` `[B, t, D]`, numbers `indices` i32 `[B·t]`.
    Gathered { rows: Tensor, indices: Tensor },
    /// `rows` `[t, D]`, from row `start` on; how often each counts f32 `[B, t]`; which of them do not.
    Shared { rows: Tensor, start: i64, counts: Option<Tensor>, excluded: Option<Tensor> },
}

impl Tile<'_> {
    /// `v·M[j]`, f32 `[B, t]`; −∞ for excluded rows.
    pub fn scores(&self) -> Tensor {
        match &self.source {
            Source::Gathered { rows, .. } => rows.bmm(&self.features.unsqueeze(2)).squeeze_dim(2),
            Source::Shared { rows, excluded, .. } => {
                let mut scores = self.features.mm(&rows.tr());
                if let Some(excluded) = excluded {
                    let _ = scores.index_fill_(1, excluded, f64::NEG_INFINITY);
                }
                scores
            }
        }
    }

    /// `values` `[B, t]` as often as their candidates were drawn.
    pub fn times(&self, values: &Tensor) -> Tensor {
        match &self.source {
            Source::Shared { counts: Some(counts), .. } => values * counts,
            _ => values.shallow_clone(),
        }
    }

    /// `Σ_j values[b, j]` over the tile's candidates, f64 `[B]`.
    pub fn sum(&self, values: &Tensor) -> Tensor {
        self.times(values).sum_dim_intlist([1].as_slice(), false, Kind::Double)
    }

    /// `Σ_j weights[b, j]·M[j]`, f32 `[B, D]`.
    pub fn weighted_rows(&self, weights: &Tensor) -> Tensor {
        match &self.source {
            Source::Gathered { rows, .. } => weights.unsqueeze(1).bmm(rows).squeeze_dim(1),
            Source::Shared { rows, .. } => weights.mm(rows),
        }
    }

    /// The candidates' entries of `values` `[N]` as `[B, t]` or `[1, t]`; of `[1]`, which is alike for all, `[1]`.
    pub fn of_rows(&self, values: &Tensor) -> Tensor {
        if values.size()[0] == 1 {
            return values.shallow_clone();
        }
        match &self.source {
            Source::Gathered { rows, indices } => {
                values.index_select(0, indices).view([rows.size()[0], rows.size()[1]])
            }
            Source::Shared { rows, start, .. } => values.narrow(0, *start, rows.size()[0]).unsqueeze(0),
        }
    }

    /// `x` f64 `[B, t]` with `ln` of how often its candidates were drawn: −∞ for those that were not.
    pub fn with_multiplicity_in_log(&self, x: Tensor) -> Tensor {
        match &self.source {
            Source::Shared { counts: Some(counts), .. } => {
                // Where the noise never draws a row its x may be +∞, which −∞ would make no number.
                x.masked_fill(&counts.eq(0.0), f64::NEG_INFINITY)
                    + counts.to_kind(Kind::Double).clamp_min(1.0).log()
            }
            _ => x,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_everything_once() {
        assert_eq!(pieces(10, 4).collect::<Vec<_>>(), [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(pieces(0, 4).count(), 0);
        assert_eq!(within(&[1, 5, 9], 4, 4, tch::Device::Cpu).unwrap().int64_value(&[0]), 1);
        assert!(within(&[1, 9], 4, 4, tch::Device::Cpu).is_none());
    }

    #[test]
    fn small_banks_are_counted_and_large_ones_gathered() {
        for (passes, from) in [(PASSES_IN_TILES, 4096), (PASSES_OF_KERNELS, 65_536)] {
            assert!(counting_moves_less(128, 50_000, 128, from, passes));
            assert!(!counting_moves_less(256, 1_281_167, 128, from, passes));
            assert!(!counting_moves_less(128, 50_000, 128, 1, passes));
        }
        assert!(!counting_moves_less(128, 50_000, 128, 4096, PASSES_OF_KERNELS));
    }
}
