//! The bank on a device, in tensor operations: what [`MemoryBank`] is where the memory is not ours to reach.
//!
//! Generic over the device, the CPU included, on which it is held against [`MemoryBank`].

use std::borrow::Cow;

use tch::{Device, Kind, Tensor, no_grad};

use super::MemoryBank;
use crate::model::to_vec_f32;

/// The rows f32 `[N, D]` on a device. During training only [`update`](Self::update) writes.
#[derive(Debug)]
pub struct DeviceBank {
    rows: Tensor,
}

impl DeviceBank {
    /// The rows of `bank`, copied to `device`.
    ///
    /// # Panics
    /// If there are more than 2³¹ − 1 rows, which a device's 32-bit indices cannot number.
    pub fn new(bank: &MemoryBank, device: Device) -> Self {
        assert!(i32::try_from(bank.len()).is_ok(), "{} rows: row numbers are 31 bits wide", bank.len());
        let shape = [bank.len() as i64, bank.dim() as i64];
        DeviceBank { rows: Tensor::from_slice(bank.rows()).view(shape).to_device(device) }
    }

    /// The rows, copied to the host.
    pub fn to_host(&self) -> MemoryBank {
        MemoryBank::from_rows(self.len(), self.dim(), to_vec_f32(&self.rows))
    }

    /// All rows, f32 `[N, D]`.
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

    /// [`MemoryBank::update`] in tensor operations: `row ← unit(m·row + (1 − m)·feature)` for the rows of `indices`.
    ///
    /// `features` f32 `[B, D]`; `indices` i64 `[B]`, distinct; both on the bank's device. `wanted` is a boolean scalar
    /// there: where it is false nothing moves, so that a loss need not have reached the host yet. A mixture without
    /// direction leaves its row as it was.
    ///
    /// # Panics
    /// If the shapes disagree with the bank's.
    pub fn update(&mut self, features: &Tensor, indices: &Tensor, bank_momentum: f32, wanted: &Tensor) {
        assert_eq!(features.size(), [indices.size()[0], self.rows.size()[1]], "features are [B, D]");
        no_grad(|| {
            let old = self.rows.index_select(0, indices);
            let mixed = &old * f64::from(bank_momentum) + features * f64::from(1.0 - bank_momentum);
            let norm = mixed
                .to_kind(Kind::Double)
                .square()
                .sum_dim_intlist([1].as_slice(), true, Kind::Double)
                .sqrt()
                .to_kind(Kind::Float);
            let moves = norm.gt(0.0).logical_and(&norm.isfinite()).logical_and(wanted);
            let new = (mixed / norm).where_self(&moves, &old);
            let _ = self.rows.index_copy_(0, indices, &new);
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
        let (n, dim) = (50, 19);
        let mut host = MemoryBank::random(n, dim, 1);
        let before = host.clone();
        let mut device = DeviceBank::new(&host, Device::Cpu);
        assert_eq!(device.to_host(), host);
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
            for (a, b) in found.row(i).iter().zip(host.row(i)) {
                let untouched = !indices[..2].contains(&(i as u32));
                assert!(
                    if untouched { a.to_bits() == b.to_bits() } else { (a - b).abs() < 1e-7 },
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
        let bank = Bank::Device(DeviceBank::new(&rows, Device::Cpu));
        assert_eq!((bank.len(), bank.dim(), bank.on_host().into_owned()), (3, 4, rows));
    }
}
