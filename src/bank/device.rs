//! The bank on a device: what [`MemoryBank`] is where the memory is not ours to reach.
//!
//! Worked on by our CUDA kernels where there are any, else in tensor operations, which are generic over the device, the CPU
//! included. Both are held against [`MemoryBank`].

use std::borrow::Cow;

use tch::{Device, Kind, Tensor, no_grad};

use super::storage::bf16_of;
use super::{MemoryBank, Noise, Rows, draw_negatives};
use crate::cuda_kernels::Kernels;
use crate::model::{Precision, to_vec_f32, upload};

/// The number of a batch in the run: what its negatives are drawn by.
#[derive(Debug)]
pub struct DrawNumber {
    /// As the host knows it. In a step that is replayed this is the number of the batch with which it was recorded.
    pub host: u64,
    /// i64 `[1]` where the bank is: in a step that is replayed the only one that is right.
    pub device: Option<Tensor>,
}

impl From<u64> for DrawNumber {
    fn from(host: u64) -> Self {
        DrawNumber { host, device: None }
    }
}

/// The rows f32 or bf16 `[N, D]` on a device. During training only [`update`](Self::update) writes.
#[derive(Debug)]
pub struct DeviceBank {
    rows: Tensor,
    kernels: Result<Kernels, String>,
}

impl DeviceBank {
    /// The rows of `bank`, copied to `device` as they are stored; with our kernels for them, if it can run any.
    ///
    /// # Panics
    /// If there are more than 2³¹ − 1 rows, which a device's 32-bit indices cannot number.
    pub fn new(bank: &MemoryBank, device: Device) -> Self {
        let kernels = Kernels::compile(bank.dim(), bank.precision().kind(), device);
        Self::with_kernels(bank, device, kernels)
    }

    /// On the CPU, with the kernels' twin.
    #[cfg(test)]
    pub(crate) fn with_twin(bank: &MemoryBank) -> Self {
        let kernels = Kernels::twin(bank.dim(), bank.precision().kind());
        Self::with_kernels(bank, Device::Cpu, Ok(kernels))
    }

    fn with_kernels(bank: &MemoryBank, device: Device, kernels: Result<Kernels, String>) -> Self {
        assert!(i32::try_from(bank.len()).is_ok(), "{} rows: row numbers are 31 bits wide", bank.len());
        DeviceBank { rows: bank.stored().to_tensor(bank.dim()).to_device(device), kernels }
    }

    /// Our kernels for these rows.
    pub(crate) fn kernels(&self) -> Option<&Kernels> {
        self.kernels.as_ref().ok()
    }

    /// Why everything is done in tensor operations; `None` where it is not.
    pub fn why_no_kernels(&self) -> Option<&str> {
        self.kernels.as_ref().err().map(String::as_str)
    }

    /// The rows, copied to the host as they are stored.
    pub fn to_host(&self) -> MemoryBank {
        let (n, dim) = (self.len(), self.dim());
        if self.rows.kind() != Kind::BFloat16 {
            return MemoryBank::from_rows(n, dim, to_vec_f32(&self.rows));
        }
        MemoryBank::copy_of(n, dim, Rows::Bf16(&bf16_of(&self.rows)), Precision::Bf16)
    }

    /// All rows, f32 or bf16 `[N, D]`.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// N, the number of rows.
    #[allow(clippy::len_without_is_empty)] // A bank is never empty.
    pub fn len(&self) -> usize {
        self.rows.size()[0] as usize
    }

    /// D, the embedding width.
    pub fn dim(&self) -> usize {
        self.rows.size()[1] as usize
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.rows.device()
    }

    /// Whether negatives of `noise` are drawn on the device: uniform ones, where there are kernels.
    pub fn draws(&self, noise: &Noise) -> bool {
        matches!(noise, Noise::Uniform { .. }) && self.kernels().is_some()
    }

    /// The negatives of batch number `draw`, i32 `[batch, k]`: those of [`draw_negatives`], [drawn](Self::draws) on the device,
    /// or on the host and uploaded.
    pub fn draw_negatives(
        &self,
        noise: &Noise,
        seed: u64,
        draw: &DrawNumber,
        batch: usize,
        k: usize,
    ) -> Tensor {
        if let (Noise::Uniform { n }, Some(kernels)) = (noise, self.kernels()) {
            let uploaded = || upload(&[draw.host.cast_signed()], &[1], self.device());
            let draw = draw.device.as_ref().map_or_else(uploaded, Tensor::shallow_clone);
            return kernels.draw_uniform(&draw, seed, *n as usize, batch, k);
        }
        let drawn = draw_negatives(noise, seed, draw.host, batch, k);
        // A bank on a device has no row number that needs the highest bit.
        let drawn: Vec<i32> = drawn.into_iter().map(u32::cast_signed).collect();
        upload(&drawn, &[batch as i64, k as i64], self.device())
    }

    /// [`MemoryBank::update`]: `row ← unit(m·row + (1 − m)·feature)` for the rows of `indices`.
    ///
    /// `features` f32 `[B, D]`; `indices` i64 `[B]`, distinct; both on the bank's device. `wanted` is a boolean scalar
    /// there: where it is false nothing moves, so that a loss need not have reached the host yet. A mixture without
    /// direction leaves its row as it was.
    ///
    /// # Panics
    /// If the shapes disagree with the bank's.
    pub fn update(&mut self, features: &Tensor, indices: &Tensor, bank_momentum: f32, wanted: &Tensor) {
        assert_eq!(features.size(), [indices.size()[0], self.rows.size()[1]], "features are [B, D]");
        if let Some(kernels) = self.kernels() {
            return kernels.update(&self.rows, features, indices, bank_momentum, wanted);
        }
        no_grad(|| {
            let old = self.rows.index_select(0, indices).to_kind(Kind::Float);
            let mixed = &old * f64::from(bank_momentum) + features * f64::from(1.0 - bank_momentum);
            let norm = mixed
                .to_kind(Kind::Double)
                .square()
                .sum_dim_intlist([1].as_slice(), true, Kind::Double)
                .sqrt()
                .to_kind(Kind::Float);
            let moves = norm.gt(0.0).logical_and(&norm.isfinite()).logical_and(wanted);
            let new = (mixed / norm).where_self(&moves, &old);
            let _ = self.rows.index_copy_(0, indices, &new.to_kind(self.rows.kind()));
        });
    }
}

/// The bank of a run, where its device has it.
#[derive(Debug)]
pub enum Bank {
    /// In our memory, worked on by our kernels.
    Host(MemoryBank),
    /// In a device's.
    Device(DeviceBank),
}

impl Bank {
    /// `bank` where a run on `device` keeps it: with the GPU under CUDA, in our memory otherwise.
    pub fn on(bank: MemoryBank, device: Device) -> Self {
        match device {
            Device::Cuda(_) => Bank::Device(DeviceBank::new(&bank, device)),
            _ => Bank::Host(bank),
        }
    }

    /// The rows in our memory: borrowed where they are there, copied where they are not.
    pub fn on_host(&self) -> Cow<'_, MemoryBank> {
        match self {
            Bank::Host(bank) => Cow::Borrowed(bank),
            Bank::Device(bank) => Cow::Owned(bank.to_host()),
        }
    }

    /// N, the number of rows.
    #[allow(clippy::len_without_is_empty)] // A bank is never empty.
    pub fn len(&self) -> usize {
        match self {
            Bank::Host(bank) => bank.len(),
            Bank::Device(bank) => bank.len(),
        }
    }

    /// D, the embedding width.
    pub fn dim(&self) -> usize {
        match self {
            Bank::Host(bank) => bank.dim(),
            Bank::Device(bank) => bank.dim(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_cpu(values: &[f32], dim: i64) -> Tensor {
        Tensor::from_slice(values).view([-1, dim])
    }

    #[test]
    fn an_update_equals_the_hosts_and_leaves_every_other_bit() {
        for precision in [Precision::Fp32, Precision::Bf16] {
            let host = MemoryBank::random_in(precision, 50, 19, 1);
            check_update(DeviceBank::new(&host, Device::Cpu), host.clone());
            check_update(DeviceBank::with_twin(&host), host);
        }
    }

    /// `device` holds what `host` does.
    fn check_update(mut device: DeviceBank, mut host: MemoryBank) {
        let (n, dim) = (host.len(), host.dim());
        let before = host.clone();
        assert_eq!(device.to_host(), before);
        // f32's last bits may differ, and then what bf16 they are rounded to: by one, for numbers below 1.
        let rounding = if host.precision() == Precision::Bf16 { 2f32.powi(-8) } else { 1e-7 };
        let mut features = MemoryBank::random(4, dim, 2).rows().to_vec();
        // Two mixtures without direction: not a number, and infinite.
        features[2 * dim] = f32::NAN;
        features[3 * dim] = f32::INFINITY;
        let indices = [4u32, 49, 0, 7];
        host.update(&features, &indices, 0.25);
        let rows = Tensor::from_slice(&indices.map(i64::from));
        let (yes, no) = (Tensor::from(true), Tensor::from(false));
        device.update(&on_cpu(&features, dim as i64), &rows, 0.25, &no);
        assert_eq!(device.to_host(), before, "not wanted");
        device.update(&on_cpu(&features, dim as i64), &rows, 0.25, &yes);
        let found = device.to_host();
        for i in 0..n {
            for (a, b) in found.row(i).iter().zip(&*host.row(i)) {
                let untouched = !indices[..2].contains(&(i as u32));
                assert!(
                    if untouched { a.to_bits() == b.to_bits() } else { (a - b).abs() <= rounding },
                    "{i}: {a} {b}"
                );
            }
        }
        assert_ne!(found, before);
    }

    #[test]
    fn a_bank_is_where_the_device_wants_it() {
        let rows = MemoryBank::random(3, 4, 1);
        assert!(matches!(Bank::on(rows.clone(), Device::Cpu), Bank::Host(_)));
        let bank = DeviceBank::new(&rows, Device::Cpu);
        assert!(bank.kernels().is_none() && bank.why_no_kernels().is_some());
        let bank = Bank::Device(bank);
        assert_eq!((bank.len(), bank.dim(), bank.on_host().into_owned()), (3, 4, rows));
    }
}
