//! Our CUDA kernels, `kernels.cu`: the bank's work that libtorch has no single operation for. Compiled when a run starts, for
//! the GPU at hand and the bank's width and precision; a CPU build needs nothing of it.
//!
//! In tests the same source is compiled for the CPU (`twin.rs`), so that what is launched here is tried without a GPU.

mod driver;
#[cfg(test)]
pub(crate) mod twin;

use std::ffi::{CStr, c_uint, c_void};

use tch::{Device, Kind, Tensor};

use crate::rng::Purpose;
use driver::Module;

const KERNELS: &str = include_str!("kernels.cu");
const INSTRUCTIONS: &str = include_str!("instructions.cu");

// As kernels.cu has them.
const WARP: usize = 32;
const DRAWING_THREADS: usize = 256;
const GATHERING_WARPS: usize = 4;
const UPDATING_WARPS: usize = 4;
const SOFTMAX_WARPS: usize = 8;
const SOFTMAX_TILE: usize = 64;
/// The features that a block of the full softmax takes, 16 a warp.
const SOFTMAX_FEATURES: usize = SOFTMAX_WARPS * 16;

/// Blocks to cut a batch's candidates into: a few for each multiprocessor of the largest GPUs. One number for all of them,
/// so that they add in the same order.
const GATHERING_BLOCKS: usize = 2048;
/// Candidates of a block at least: below, its start costs more than its work.
const FEWEST_CANDIDATES: usize = 64;

/// A value that a kernel is given.
#[derive(Clone, Copy, Debug)]
enum Argument {
    Pointer(*mut c_void),
    Int(i32),
    Unsigned(u32),
    Long(u64),
    Float(f32),
}

impl Argument {
    /// Where the value lies.
    fn address(&self) -> *mut c_void {
        match self {
            Argument::Pointer(value) => (&raw const *value).cast_mut().cast(),
            Argument::Int(value) => (&raw const *value).cast_mut().cast(),
            Argument::Unsigned(value) => (&raw const *value).cast_mut().cast(),
            Argument::Long(value) => (&raw const *value).cast_mut().cast(),
            Argument::Float(value) => (&raw const *value).cast_mut().cast(),
        }
    }
}

#[derive(Debug)]
enum Target {
    Gpu(Module),
    #[cfg(test)]
    Twin(&'static twin::Twin),
}

/// Sums of candidates in parts P, as the softmaxes' kernels leave them. Logits x are in units of ln 2.
#[derive(Debug)]
pub struct Partials {
    /// `max x`, f32 `[B, P]`; −∞ for a part without candidates.
    pub largest: Tensor,
    /// `Σ 2^(x − largest)`, f32 `[B, P]`.
    pub totals: Tensor,
    /// `Σ 2^(x − largest)·M[j]`, f32 `[B, P, D]`.
    pub rows: Tensor,
}

/// The kernels for banks of one width and precision.
#[derive(Debug)]
pub struct Kernels {
    target: Target,
    dim: usize,
    kind: Kind,
}

impl Kernels {
    /// Compiles them for `device` and banks `[N, dim]` of `kind`, f32 or bf16. Takes some seconds.
    ///
    /// # Errors
    /// If `device` is not a CUDA device that can run them, or NVRTC cannot be found: why.
    pub fn compile(dim: usize, kind: Kind, device: Device) -> Result<Self, String> {
        let Device::Cuda(index) = device else { return Err("they need a CUDA device".to_owned()) };
        let source = format!("{INSTRUCTIONS}\n{KERNELS}");
        let module = Module::compile(&source, &defines(dim, kind), index)?;
        Ok(Kernels { target: Target::Gpu(module), dim, kind })
    }

    /// The uniform negatives of batch number `draw` (i64 `[1]`), i32 `[batch, k]` in `0..n`: those of
    /// [`crate::bank::draw_negatives`].
    ///
    /// # Panics
    /// If the device refuses.
    pub fn draw_uniform(&self, draw: &Tensor, seed: u64, n: usize, batch: usize, k: usize) -> Tensor {
        assert_eq!((draw.size(), draw.kind()), (vec![1], Kind::Int64), "the number of the draw");
        let negatives = Tensor::empty([batch as i64, k as i64], (Kind::Int, draw.device()));
        if k > 0 {
            let arguments = [
                pointer(&negatives),
                pointer(draw),
                Argument::Long(seed),
                Argument::Long(Purpose::Noise as u64),
                Argument::Unsigned(n as u32),
                Argument::Int(k as i32),
            ];
            // SAFETY: draw_uniform's parameters; it writes `batch` rows of `k`, and reads one number.
            unsafe { self.launch(c"draw_uniform", [batch, 1], DRAWING_THREADS, &arguments) };
        }
        negatives
    }

    /// NCE's negatives i32 `[B, K]`: of each batch row the sum of `softplus(x) + constant`, f64 `[B]`, and of the rows
    /// weighted by `sigmoid(x)`, f32 `[B, D]`, with `x = v·M[j]/T + offset`. `offsets` and `constants` are f32 `[N]`, or
    /// `[1]` for all rows.
    ///
    /// # Panics
    /// If shapes or kinds disagree, or the device refuses.
    pub fn nce(
        &self,
        bank: &Tensor,
        features: &Tensor,
        negatives: &Tensor,
        [offsets, constants]: [&Tensor; 2],
        temperature: f64,
    ) -> (Tensor, Tensor) {
        let gather = self.gather(bank, features, negatives);
        let by_row = offsets.numel() > 1;
        for values in [offsets, constants] {
            let expected = if by_row { bank.size()[0] } else { 1 };
            assert_eq!((values.size(), values.kind()), (vec![expected], Kind::Float), "offsets, constants");
        }
        let losses = Tensor::empty([gather.batch, gather.parts], (Kind::Double, bank.device()));
        let rows = gather.rows();
        let arguments = [
            pointer(features),
            pointer(bank),
            pointer(negatives),
            pointer(offsets),
            pointer(constants),
            Argument::Int(i32::from(by_row)),
            Argument::Int(gather.k as i32),
            Argument::Float((1.0 / temperature) as f32),
            pointer(&losses),
            pointer(&rows),
        ];
        // SAFETY: nce_partials' parameters; shapes were compared, and negatives are rows of the bank.
        unsafe { self.launch(c"nce_partials", gather.grid(), GATHERING_WARPS * WARP, &arguments) };
        let sum = |partials: &Tensor, kind| partials.sum_dim_intlist([1].as_slice(), false, kind);
        (sum(&losses, Kind::Double), sum(&rows, Kind::Float))
    }

    /// The sums of the sampled softmax over its negatives i32 `[B, K]`.
    ///
    /// # Panics
    /// If shapes or kinds disagree, or the device refuses.
    pub fn sampled(
        &self,
        bank: &Tensor,
        features: &Tensor,
        negatives: &Tensor,
        temperature: f64,
    ) -> Partials {
        let gather = self.gather(bank, features, negatives);
        let partials = gather.partials();
        let arguments = [
            pointer(features),
            pointer(bank),
            pointer(negatives),
            Argument::Int(gather.k as i32),
            logits_per_score(temperature),
            pointer(&partials.largest),
            pointer(&partials.totals),
            pointer(&partials.rows),
        ];
        // SAFETY: sampled_partials' parameters; shapes were compared, and negatives are rows of the bank.
        unsafe { self.launch(c"sampled_partials", gather.grid(), GATHERING_WARPS * WARP, &arguments) };
        partials
    }

    /// Whether [`softmax`](Self::softmax) can be had for rows of this width.
    pub fn have_softmax(&self) -> bool {
        self.dim.is_multiple_of(16) && self.dim <= 128
    }

    /// The sums of the full softmax over all rows of the bank but the features' own, `indices` i64 `[B]`, and the
    /// `excluded`, u8 `[N]`, those that are not 0. Products are of numbers rounded to bf16, sums in f32.
    ///
    /// # Panics
    /// If shapes or kinds disagree, the width is one that it does not take, or the device refuses.
    pub fn softmax(
        &self,
        bank: &Tensor,
        features: &Tensor,
        indices: &Tensor,
        excluded: Option<&Tensor>,
        temperature: f64,
    ) -> Partials {
        assert!(self.have_softmax(), "rows of {}", self.dim);
        let (batch, n) = (features.size()[0], bank.size()[0]);
        self.check(bank, features);
        assert_eq!((indices.size(), indices.kind()), (vec![batch], Kind::Int64), "indices");
        if let Some(excluded) = excluded {
            assert_eq!((excluded.size(), excluded.kind()), (vec![n], Kind::Uint8), "excluded");
        }
        let blocks = (batch as usize).div_ceil(SOFTMAX_FEATURES);
        let parts = (self.multiprocessors() / blocks).clamp(1, (n as usize).div_ceil(SOFTMAX_TILE));
        let gather = Gather { batch, k: n, dim: self.dim as i64, parts: parts as i64, device: bank.device() };
        let partials = gather.partials();
        let arguments = [
            pointer(features),
            pointer(bank),
            excluded.map_or(Argument::Pointer(std::ptr::null_mut()), pointer),
            pointer(indices),
            Argument::Int(batch as i32),
            Argument::Int(n as i32),
            logits_per_score(temperature),
            pointer(&partials.largest),
            pointer(&partials.totals),
            pointer(&partials.rows),
        ];
        // SAFETY: softmax_partials' parameters; shapes were compared.
        unsafe { self.launch(c"softmax_partials", [parts, blocks], SOFTMAX_WARPS * WARP, &arguments) };
        partials
    }

    /// [`crate::bank::DeviceBank::update`]: `wanted` is a boolean `[]` or `[1]`.
    ///
    /// # Panics
    /// If shapes or kinds disagree, or the device refuses.
    pub fn update(
        &self,
        bank: &Tensor,
        features: &Tensor,
        indices: &Tensor,
        bank_momentum: f32,
        wanted: &Tensor,
    ) {
        let batch = features.size()[0];
        self.check(bank, features);
        assert_eq!((indices.size(), indices.kind()), (vec![batch], Kind::Int64), "indices");
        assert_eq!((wanted.numel(), wanted.kind()), (1, Kind::Bool), "wanted");
        let arguments = [
            pointer(bank),
            pointer(features),
            pointer(indices),
            pointer(wanted),
            Argument::Int(batch as i32),
            Argument::Float(bank_momentum),
            Argument::Float(1.0 - bank_momentum),
        ];
        let blocks = (batch as usize).div_ceil(UPDATING_WARPS);
        // SAFETY: update_rows' parameters; shapes were compared, and indices are distinct rows of the bank.
        unsafe { self.launch(c"update_rows", [blocks, 1], UPDATING_WARPS * WARP, &arguments) };
    }

    fn gather(&self, bank: &Tensor, features: &Tensor, negatives: &Tensor) -> Gather {
        self.check(bank, features);
        let (batch, k) = (features.size()[0], negatives.size()[1]);
        assert_eq!((negatives.size()[0], negatives.kind()), (batch, Kind::Int), "negatives are i32 [B, K]");
        assert!(negatives.is_contiguous(), "negatives in one piece");
        let most = (k as usize).div_ceil(FEWEST_CANDIDATES).max(1);
        let parts = GATHERING_BLOCKS.div_ceil(batch as usize).clamp(1, most);
        Gather { batch, k, dim: self.dim as i64, parts: parts as i64, device: bank.device() }
    }

    fn check(&self, bank: &Tensor, features: &Tensor) {
        let dim = self.dim as i64;
        assert_eq!((bank.size()[1], bank.kind()), (dim, self.kind), "a bank of another width or precision");
        assert_eq!((features.size()[1], features.kind()), (dim, Kind::Float), "features are f32 [B, D]");
        assert!(bank.is_contiguous() && features.is_contiguous(), "rows in one piece");
    }

    fn multiprocessors(&self) -> usize {
        match &self.target {
            Target::Gpu(module) => module.multiprocessors(),
            #[cfg(test)]
            Target::Twin(_) => twin::MULTIPROCESSORS,
        }
    }

    /// # Safety
    /// [`Module::launch`]'s, of what `arguments` are.
    unsafe fn launch(&self, kernel: &CStr, grid: [usize; 2], threads: usize, arguments: &[Argument]) {
        let mut arguments: Vec<*mut c_void> = arguments.iter().map(Argument::address).collect();
        let (grid, threads) = (grid.map(|size| size as c_uint), threads as c_uint);
        match &self.target {
            // SAFETY: the caller's promise.
            Target::Gpu(module) => unsafe { module.launch(kernel, grid, threads, &mut arguments) },
            #[cfg(test)]
            // SAFETY: the caller's promise.
            Target::Twin(twin) => unsafe { twin.launch(kernel, grid, threads, &mut arguments) },
        }
    }
}

/// How a batch's candidates are cut into parts.
struct Gather {
    batch: i64,
    k: i64,
    dim: i64,
    parts: i64,
    device: Device,
}

impl Gather {
    fn grid(&self) -> [usize; 2] {
        [self.parts as usize, self.batch as usize]
    }

    fn rows(&self) -> Tensor {
        Tensor::empty([self.batch, self.parts, self.dim], (Kind::Float, self.device))
    }

    fn partials(&self) -> Partials {
        let numbers = || Tensor::empty([self.batch, self.parts], (Kind::Float, self.device));
        Partials { largest: numbers(), totals: numbers(), rows: self.rows() }
    }
}

/// The macros that kernels.cu is compiled with.
fn defines(dim: usize, kind: Kind) -> Vec<String> {
    vec![format!("DIM={dim}"), format!("BANK_BF16={}", u8::from(kind == Kind::BFloat16))]
}

fn pointer(tensor: &Tensor) -> Argument {
    Argument::Pointer(tensor.data_ptr())
}

/// From a dot product to a logit in units of ln 2.
fn logits_per_score(temperature: f64) -> Argument {
    Argument::Float((std::f64::consts::LOG2_E / temperature) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::{Noise, draw_negatives};

    #[test]
    fn drawn_negatives_are_the_hosts_where_none_and_where_many_words_are_refused() {
        let kernels = Kernels::twin(16, Kind::Float);
        // Of 2³¹ + 1 rows nearly every second word is refused; K is no multiple of what a block makes at once.
        for (n, batch, k) in [(50_000, 3, 4096), (7, 2, 5), ((1 << 31) + 1, 2, 5000), (1, 1, 17), (977, 2, 0)]
        {
            let host = draw_negatives(&Noise::Uniform { n }, u64::MAX - 4, 1 << 40, batch, k);
            let draw = Tensor::from_slice(&[1i64 << 40]);
            let found = kernels.draw_uniform(&draw, u64::MAX - 4, n as usize, batch, k);
            assert_eq!(found.size(), [batch as i64, k as i64]);
            let found: Vec<i32> = Vec::try_from(found.reshape([-1])).unwrap();
            assert_eq!(found, host.into_iter().map(u32::cast_signed).collect::<Vec<_>>(), "{n} {k}");
        }
    }

    /// Where NVRTC is installed, for example with PyTorch, its compiler sees what the GPU will run.
    #[test]
    #[allow(clippy::print_stdout, reason = "a test that does not run says so")]
    fn nvrtc_compiles_every_width_and_precision() {
        let source = format!("{INSTRUCTIONS}\n{KERNELS}");
        for (dim, kind) in
            [(128, Kind::Float), (128, Kind::BFloat16), (64, Kind::Float), (19, Kind::BFloat16)]
        {
            match driver::compile(&source, &defines(dim, kind), "sm_90") {
                Ok(binary) => assert!(binary.starts_with(b"\x7fELF"), "a device's binary"),
                Err(reason) if reason.contains("libnvrtc") => {
                    println!("skipped: {reason}");
                    return;
                }
                Err(reason) => panic!("{reason}"),
            }
        }
    }
}
