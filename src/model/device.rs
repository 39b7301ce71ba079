//! Where tensors live, as a person says it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tch::Device;

use super::cuda;
use crate::error::{Error, Result};

/// `--device auto|cpu|cuda[:N]|mps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum DeviceChoice {
    /// The first CUDA device if there is one, else the CPU. Apple's GPU only by name: it is the least tried.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device, counted from 0.
    Cuda(usize),
    /// Apple's GPU.
    Mps,
}

impl DeviceChoice {
    /// The device itself. A CUDA device is [looked for](cuda::devices) before libtorch does anything else, so call this
    /// before the first tensor.
    ///
    /// # Errors
    /// If the device is not there, saying what is missing.
    pub fn resolve(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Auto if cuda::devices().is_ok() => Ok(cuda_device(0)),
            DeviceChoice::Auto => Ok(Device::Cpu),
            DeviceChoice::Cuda(index) => {
                let count =
                    cuda::devices().map_err(|absent| refused(self, &absent.to_string(), absent.hint()))?;
                if index < count {
                    return Ok(cuda_device(index));
                }
                Err(refused(
                    self,
                    &format!("this machine has {count} CUDA device(s), counted from 0"),
                    "give one of them, or use --device cpu",
                ))
            }
            DeviceChoice::Mps if tch::utils::has_mps() => Ok(Device::Mps),
            DeviceChoice::Mps => Err(refused(
                self,
                "this libtorch has no Apple GPU to use",
                "use --device cpu (mps needs macOS on Apple silicon)",
            )),
        }
    }

    /// Why `auto` means the CPU here; `None` where it does not, or another device was named.
    pub fn why_cpu(self) -> Option<String> {
        match (self, cuda::devices()) {
            (DeviceChoice::Auto, Err(absent)) => Some(format!("on the CPU: {absent}")),
            _ => None,
        }
    }
}

fn cuda_device(index: usize) -> Device {
    cuda::prefer_speed();
    Device::Cuda(index)
}

/// `device` as `--device` names it.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn refused(choice: DeviceChoice, reason: &str, hint: &str) -> Error {
    Error::Usage { message: format!("cannot use --device {choice}: {reason}"), hint: Some(hint.into()) }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceChoice::Mps => f.write_str("mps"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |text: &str| {
            (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
                .then(|| text.parse().ok())
                .flatten()
        };
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            "mps" => Ok(DeviceChoice::Mps),
            _ => text
                .strip_prefix("cuda:")
                .and_then(digits)
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| format!("expected auto, cpu, cuda, cuda:N or mps, found '{text}'")),
        }
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_reads_back_as_written() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(3), DeviceChoice::Mps] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(serde_json::from_str::<DeviceChoice>(&json).unwrap(), choice);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
    }

    #[test]
    fn a_device_is_called_as_it_was_chosen() {
        for (device, name) in [(Device::Cpu, "cpu"), (Device::Cuda(1), "cuda:1"), (Device::Mps, "mps")] {
            assert_eq!(device_name(device), name);
            assert!(name.parse::<DeviceChoice>().is_ok());
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:1x", "cuda:99999999999999999999", "CPU"]
        {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_cpu_is_always_there_and_an_absent_device_is_named() {
        assert_eq!(DeviceChoice::Cpu.resolve().unwrap(), Device::Cpu);
        let error = DeviceChoice::Cuda(4096).resolve().unwrap_err();
        assert!(error.to_string().contains("cuda:4096"), "{error}");
        assert!(error.hint().is_some());
    }
}
