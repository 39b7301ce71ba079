//! The same objectives for banks on a device, in tensor operations and our CUDA kernels. Formulas and symbols are those of [`super::nce`],
//! [`super::softmax`], [`super::normalizer`] and [`super::proximal`]; results agree to rounding.
//!
//! Candidates are scored in tiles of bounded size: rows that were gathered for each feature, or, where that moves less
//! memory, stretches of the bank that all features share. Each tile is scored, weighed and added to the gradient before the
//! next. Sums of losses are taken in double precision. Nothing here adds in an order that may change from one time to the
//! next, so that results are the same bits on the same device.

mod tiles;

use tch::{Device, Kind, Tensor, no_grad};

use super::nce::EPSILON;
use super::normalizer::{Entries, Normalizer};
use crate::bank::{DeviceBank, Noise};
use crate::cuda_kernels::Partials;
use crate::model::Precision;
use tiles::{Candidates, Drawn, Tile};

/// A loss and its gradient, still on the device.
#[derive(Debug)]
pub struct DeviceLoss {
    /// The mean over the batch, f64, a scalar.
    pub loss: Tensor,
    /// Its derivative with respect to the features, f32 `[B, D]`.
    pub gradient: Tensor,
}

impl DeviceLoss {
    /// Adds another term, for example [`proximal`].
    pub fn add(&mut self, term: DeviceLoss) {
        self.loss += term.loss;
        self.gradient += term.gradient;
    }
}

/// What every objective is given, all on one device.
#[derive(Clone, Copy)]
pub struct DeviceProblem<'a> {
    /// Unit rows f32 `[B, D]`, without a graph.
    pub features: &'a Tensor,
    /// The bank `[N, D]`.
    pub bank: &'a DeviceBank,
    /// Rows of the features' own images, i64 `[B]`.
    pub indices: &'a Tensor,
    /// T, positive.
    pub temperature: f64,
    /// In what the full softmax may multiply: with [`Precision::Bf16`] one kernel does all of it, where there are kernels.
    pub products: Precision,
}

impl DeviceProblem<'_> {
    /// B.
    fn batch(&self) -> i64 {
        self.features.size()[0]
    }

    /// The own rows f32 `[B, D]`, and `v·M[i]/T` f64 `[B]`.
    fn positives(&self) -> (Tensor, Tensor) {
        let rows = self.bank.rows().index_select(0, self.indices).to_kind(Kind::Float);
        let products = self.features.to_kind(Kind::Double) * &rows;
        let logits = products.sum_dim_intlist([1].as_slice(), false, Kind::Double) / self.temperature;
        (rows, logits)
    }

    /// The mean of `rows` f64 `[B]` with the gradient of their sum, `weighted` f32 `[B, D]`, by the logits.
    fn mean(&self, rows: &Tensor, weighted: &Tensor) -> DeviceLoss {
        let scale = 1.0 / (self.temperature * self.batch() as f64);
        DeviceLoss { loss: rows.mean(Kind::Double), gradient: weighted * scale }
    }
}

/// Noise as the device needs it, uploaded once for a run.
#[derive(Debug)]
pub struct DeviceNoise {
    n: usize,
    /// Where rows are drawn with different probabilities: `q(j)` as f64 `[N]`.
    weights: Option<Tensor>,
}

impl DeviceNoise {
    /// The probabilities of `noise`, on `device`.
    pub fn new(noise: &Noise, device: Device) -> Self {
        let n = noise.len();
        let weights = match noise {
            Noise::Uniform { .. } => None,
            Noise::Weighted(_) => {
                let probabilities: Vec<f64> = (0..n as u32).map(|i| noise.probability(i)).collect();
                Some(Tensor::from_slice(&probabilities).to_device(device))
            }
        };
        DeviceNoise { n, weights }
    }

    /// `of(q)` of every row f32 `[N]`, or one for all where they are alike. `of` takes f64.
    fn map(&self, device: Device, of: impl Fn(&Tensor) -> Tensor) -> Tensor {
        match &self.weights {
            Some(weights) => of(weights).to_kind(Kind::Float),
            None => {
                let one = Tensor::full([1], 1.0 / self.n as f64, (Kind::Double, device));
                of(&one).to_kind(Kind::Float)
            }
        }
    }
}

/// [`super::nce::loss`]; `negatives` i32 `[B, K]` drawn from `noise`.
///
/// # Panics
/// If the shapes disagree.
pub fn nce(problem: &DeviceProblem, negatives: &Tensor, ln_z: f64, noise: &DeviceNoise) -> DeviceLoss {
    no_grad(|| {
        let k = negatives.size()[1] as f64;
        let device = problem.bank.device();
        let offsets = noise.map(device, |q| -(q * k + EPSILON).log() - ln_z);
        // A row of probability 0 is never drawn; its constant would be infinite, and 0 times that no number.
        let constants =
            noise.map(device, |q| (q * k).reciprocal().masked_fill(&q.eq(0.0), 0.0) * EPSILON).log1p();
        let (positives, logits) = problem.positives();
        let own = |of: &Tensor| match of.size()[0] {
            1 => of.shallow_clone(),
            _ => of.index_select(0, problem.indices),
        };
        let x = logits + own(&offsets);
        let mut loss = (-&x).softplus();
        let mut gradient = positives * (-((-&x).sigmoid())).to_kind(Kind::Float).unsqueeze(1);
        match Candidates::drawn(problem, negatives) {
            Drawn::ByKernels(kernels) => {
                let (rows, features) = (problem.bank.rows(), problem.features);
                let (terms, weighted) =
                    kernels.nce(rows, features, negatives, [&offsets, &constants], problem.temperature);
                loss += terms;
                gradient += weighted;
            }
            Drawn::InTiles(candidates) => candidates.each(|tile| {
                let x = tile.scores() / problem.temperature + tile.of_rows(&offsets);
                let terms = x.softplus() + tile.of_rows(&constants);
                loss += tile.sum(&terms);
                gradient += tile.weighted_rows(&tile.times(&x.sigmoid()));
            }),
        }
        problem.mean(&loss, &gradient)
    })
}

/// [`super::softmax::sampled`]; `negatives` i32 `[B, K]`.
///
/// # Panics
/// If the shapes disagree.
pub fn sampled_softmax(problem: &DeviceProblem, negatives: &Tensor) -> DeviceLoss {
    no_grad(|| {
        let (positives, logits) = problem.positives();
        // The positive is a candidate of its own.
        match Candidates::drawn(problem, negatives) {
            Drawn::ByKernels(kernels) => {
                let (rows, features) = (problem.bank.rows(), problem.features);
                let partials = kernels.sampled(rows, features, negatives, problem.temperature);
                add_up(problem, &partials, &positives, &logits)
            }
            Drawn::InTiles(candidates) => {
                let mut sums = RunningSoftmax::new(&logits);
                sums.total = logits.ones_like(); // exp(0)
                sums.rows = positives.shallow_clone();
                candidates.each(|tile| sums.add(tile, problem.temperature));
                sums.finish(problem, &positives, &logits)
            }
        }
    })
}

/// [`super::softmax::full`]; `excluded` rows, ascending, are no candidates.
///
/// One pass over the bank: each stretch is scored, turned into weights relative to the largest logit so far, and added to
/// the gradient. Where `problem.products` allows it and there are kernels, that is one of them, with the positives
/// in fp32 all the same.
///
/// # Panics
/// If the shapes disagree.
pub fn full_softmax(problem: &DeviceProblem, excluded: &[u32]) -> DeviceLoss {
    no_grad(|| {
        let (positives, logits) = problem.positives();
        let kernels = problem.bank.kernels().filter(|kernels| kernels.have_softmax());
        if let (Some(kernels), Precision::Bf16) = (kernels, problem.products) {
            let (bank, features) = (problem.bank.rows(), problem.features);
            let excluded = (!excluded.is_empty()).then(|| flags(excluded, problem.bank));
            let partials =
                kernels.softmax(bank, features, problem.indices, excluded.as_ref(), problem.temperature);
            return add_up(problem, &partials, &positives, &logits);
        }
        let mut sums = RunningSoftmax::new(&logits);
        Candidates::whole_bank(problem, excluded).each(|tile| sums.add(tile, problem.temperature));
        sums.finish(problem, &positives, &logits)
    })
}

/// `rows` of the bank as u8 `[N]`: 1 for each of them, 0 for the others.
fn flags(rows: &[u32], bank: &DeviceBank) -> Tensor {
    let mut flags = vec![0u8; bank.len()];
    for &row in rows {
        flags[row as usize] = 1;
    }
    Tensor::from_slice(&flags).to_device(bank.device())
}

/// The softmax over the positive and what a kernel left in parts, in double precision up to the weights of the parts.
fn add_up(problem: &DeviceProblem, partials: &Partials, positives: &Tensor, logits: &Tensor) -> DeviceLoss {
    // In units of ln 2, as the parts.
    let positive = logits * std::f64::consts::LOG2_E; // [B]
    let tops = partials.largest.to_kind(Kind::Double); // [B, P]
    let largest = positive.maximum(&tops.amax([1].as_slice(), false));
    let weights = (tops - largest.unsqueeze(1)).exp2();
    let own = (positive - &largest).exp2();
    let total = (&partials.totals * &weights).sum_dim_intlist([1].as_slice(), false, Kind::Double) + &own;
    // Weighed and added one by one: a product of matrices may round to TF32.
    let rows = (&partials.rows * weights.to_kind(Kind::Float).unsqueeze(2)).sum_dim_intlist(
        [1].as_slice(),
        false,
        Kind::Float,
    );
    let rows = rows + positives * own.to_kind(Kind::Float).unsqueeze(1);
    let loss = (largest + total.log2()) * std::f64::consts::LN_2 - logits;
    let shares = rows / total.to_kind(Kind::Float).unsqueeze(1);
    problem.mean(&loss, &(shares - positives))
}

/// `Σ exp(logit − largest)` of each batch row, and the rows weighted so.
struct RunningSoftmax {
    /// f32 `[B, 1]`; starts with the positive's logit, so that it is a number whatever is excluded.
    largest: Tensor,
    /// f64 `[B]`.
    total: Tensor,
    /// f32 `[B, D]`, made by the first tile.
    rows: Tensor,
}

impl RunningSoftmax {
    fn new(logits: &Tensor) -> Self {
        RunningSoftmax {
            largest: logits.to_kind(Kind::Float).unsqueeze(1),
            total: logits.zeros_like(),
            rows: Tensor::zeros([1, 1], (Kind::Float, logits.device())),
        }
    }

    fn add(&mut self, tile: &Tile, temperature: f64) {
        // In place: of all that is as large as the scores there is one at a time.
        let mut scores = tile.scores();
        let _ = scores.g_mul_scalar_(1.0 / temperature);
        let largest = self.largest.maximum(&scores.amax([1].as_slice(), true));
        let factor = (&self.largest - &largest).exp();
        let _ = scores.g_sub_(&largest);
        let weights = tile.times(&scores.exp_());
        self.total = &self.total * factor.squeeze_dim(1)
            + weights.sum_dim_intlist([1].as_slice(), false, Kind::Double);
        self.rows = &self.rows * factor + tile.weighted_rows(&weights);
        self.largest = largest;
    }

    fn finish(self, problem: &DeviceProblem, positives: &Tensor, logits: &Tensor) -> DeviceLoss {
        let loss = self.largest.squeeze_dim(1) + self.total.log() - logits;
        let shares = self.rows / self.total.to_kind(Kind::Float).unsqueeze(1);
        problem.mean(&loss, &(shares - positives))
    }
}

/// [`super::normalizer::estimate_ln_z`], on the device: f64, a scalar.
///
/// # Panics
/// If the shapes disagree.
pub fn estimate_ln_z(
    problem: &DeviceProblem,
    negatives: &Tensor,
    noise: &DeviceNoise,
    entries: Entries,
) -> Tensor {
    no_grad(|| {
        let minus_ln_q = noise.map(problem.bank.device(), |q| -q.log());
        let mut logs = Vec::new();
        Candidates::in_tiles(problem, negatives).each(|tile| {
            let x = (tile.scores() / problem.temperature + tile.of_rows(&minus_ln_q)).to_kind(Kind::Double);
            logs.push(tile.with_multiplicity_in_log(x).logsumexp([0, 1].as_slice(), false));
        });
        let (batch, k) = (problem.batch(), negatives.size()[1]);
        let mut columns = k;
        if entries == Entries::All {
            let (_, logits) = problem.positives();
            logs.push((logits + (problem.bank.len() as f64).ln()).logsumexp([0].as_slice(), false));
            columns += 1;
        }
        Tensor::stack(&logs, 0).logsumexp([0].as_slice(), false) - ((batch * columns) as f64).ln()
    })
}

/// [`super::proximal`] in tensor operations.
///
/// # Panics
/// If the shapes disagree.
pub fn proximal(problem: &DeviceProblem, lambda: f64) -> DeviceLoss {
    no_grad(|| {
        let scale = lambda / problem.batch() as f64;
        let difference = problem.features - problem.bank.rows().index_select(0, problem.indices);
        let loss = difference.to_kind(Kind::Double).square().sum(Kind::Double) * scale;
        DeviceLoss { loss, gradient: difference * (2.0 * scale) }
    })
}

/// Brings Z up to date where it needs an estimate, as [`Normalizer::update`] does, and returns ln Z. Waits for the device
/// where there is something to estimate.
pub fn ln_z(
    normalizer: &mut Normalizer,
    problem: &DeviceProblem,
    negatives: &Tensor,
    noise: &DeviceNoise,
    entries: Entries,
) -> f64 {
    match normalizer.ln_z {
        Some(known) if !normalizer.needs_estimate() => known,
        _ => normalizer.update(estimate_ln_z(problem, negatives, noise, entries).double_value(&[])),
    }
}

#[cfg(test)]
mod tests;
