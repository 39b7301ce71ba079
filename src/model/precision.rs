//! In what numbers the encoder computes.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// The numbers of the convolutions. Parameters, statistics, pooling, the linear layer and the norm are fp32
/// in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Precision {
    /// Single precision throughout, as published.
    #[default]
    Fp32,
    /// bfloat16 activations and convolutions with fp32 masters, what PyTorch's autocast does.
    Bf16,
}

impl Precision {
    /// bf16 where `device` multiplies it in hardware, else fp32.
    pub fn auto(device: Device) -> Self {
        let fast = match device {
            Device::Cpu => cpu_has_bf16(),
            Device::Cuda(_) => true,
            _ => false,
        };
        if fast { Precision::Bf16 } else { Precision::Fp32 }
    }

    /// The kind of the convolutions' operands.
    pub fn kind(self) -> Kind {
        match self {
            Precision::Fp32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::Fp32 => "fp32",
            Precision::Bf16 => "bf16",
        })
    }
}

/// `--precision auto|fp32|bf16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum PrecisionChoice {
    /// See [`Precision::auto`].
    #[default]
    Auto,
    /// See [`Precision::Fp32`].
    Fp32,
    /// See [`Precision::Bf16`].
    Bf16,
}

impl PrecisionChoice {
    /// What it means on `device`.
    pub fn resolve(self, device: Device) -> Precision {
        match self {
            PrecisionChoice::Auto => Precision::auto(device),
            PrecisionChoice::Fp32 => Precision::Fp32,
            PrecisionChoice::Bf16 => Precision::Bf16,
        }
    }
}

impl From<Precision> for PrecisionChoice {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => PrecisionChoice::Fp32,
            Precision::Bf16 => PrecisionChoice::Bf16,
        }
    }
}

impl fmt::Display for PrecisionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PrecisionChoice::Auto => "auto",
            PrecisionChoice::Fp32 => "fp32",
            PrecisionChoice::Bf16 => "bf16",
        })
    }
}

/// Every x86 CPU with AMX-bf16 has AVX-512-bf16 too, so one test covers both.
#[cfg(target_arch = "x86_64")]
fn cpu_has_bf16() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(target_arch = "aarch64")]
fn cpu_has_bf16() -> bool {
    std::arch::is_aarch64_feature_detected!("bf16")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_has_bf16() -> bool {
    false
}
