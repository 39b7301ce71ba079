//! The machine's peak, as far as libtorch reaches it: what a step is measured against.

use std::time::{Duration, Instant};

use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::model::Precision;

/// Side of the square matrices: large enough that arithmetic outweighs memory, small enough for several products a
/// second on two cores of 2017.
const CPU_SIDE: i64 = 2048;
/// The same for devices that are ten to a thousand times as fast.
const ACCELERATOR_SIDE: i64 = 8192;
/// Products at the least, whatever time they take.
const LEAST_PRODUCTS: usize = 3;

/// FLOP/s of the fastest product of two large matrices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Peak {
    /// In single precision.
    pub fp32: f64,
    /// In bfloat16, where the device multiplies it in hardware.
    pub bf16: Option<f64>,
}

impl Peak {
    /// Measures `device` for `duration`, half of it in each precision that it has.
    pub fn measure(device: Device, duration: Duration) -> Self {
        let has_bf16 = Precision::auto(device) == Precision::Bf16;
        let share = duration / if has_bf16 { 2 } else { 1 };
        Peak {
            fp32: fastest_product(device, Kind::Float, share),
            bf16: has_bf16.then(|| fastest_product(device, Kind::BFloat16, share)),
        }
    }

    /// That of `precision`; of fp32 where bf16 has none.
    pub fn of(&self, precision: Precision) -> f64 {
        match precision {
            Precision::Fp32 => self.fp32,
            Precision::Bf16 => self.bf16.unwrap_or(self.fp32),
        }
    }

    /// The larger of two measurements: a neighbour's work can only lower one.
    pub fn or_better(self, other: Peak) -> Self {
        Peak {
            fp32: self.fp32.max(other.fp32),
            bf16: self.bf16.zip(other.bf16).map(|(a, b)| a.max(b)).or(self.bf16).or(other.bf16),
        }
    }
}

fn fastest_product(device: Device, kind: Kind, duration: Duration) -> f64 {
    let side = if device == Device::Cpu { CPU_SIDE } else { ACCELERATOR_SIDE };
    let [a, b] = [0; 2].map(|_| Tensor::rand([side, side], (Kind::Float, device)).to_kind(kind));
    let product = a.empty_like();
    let (started, mut fastest, mut made) = (Instant::now(), f64::INFINITY, 0);
    while made < LEAST_PRODUCTS || started.elapsed() < duration {
        let one = Instant::now();
        let _ = a.matmul_out(&product, &b);
        // Reading a number waits for devices that work on their own.
        let _ = product.double_value(&[0, 0]);
        fastest = fastest.min(one.elapsed().as_secs_f64());
        made += 1;
    }
    2.0 * (side as f64).powi(3) / fastest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_a_precision_is_its_own_where_there_is_one() {
        let old = Peak { fp32: 2.0, bf16: None };
        let new = Peak { fp32: 1.0, bf16: Some(4.0) };
        assert_eq!((old.of(Precision::Fp32), old.of(Precision::Bf16)), (2.0, 2.0));
        assert_eq!((new.of(Precision::Fp32), new.of(Precision::Bf16)), (1.0, 4.0));
        assert_eq!(old.or_better(new), Peak { fp32: 2.0, bf16: Some(4.0) });
        assert_eq!(new.or_better(Peak { fp32: 0.5, bf16: Some(5.0) }), Peak { fp32: 1.0, bf16: Some(5.0) });
    }

    #[test]
    fn a_machine_has_a_peak() {
        let peak = Peak::measure(Device::Cpu, Duration::ZERO);
        // From the slowest board that runs libtorch to more than any processor has.
        assert!((1e8..1e15).contains(&peak.fp32), "{peak:?}");
        assert_eq!(peak.bf16.is_some(), Precision::auto(Device::Cpu) == Precision::Bf16);
    }
}
