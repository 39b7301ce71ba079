//! From our memory to a device's.

use tch::kind::Element;
use tch::{Device, Tensor};

/// `values` as a tensor of `shape` on `device`. To a CUDA device they go through page-locked memory, and the call does not
/// wait for them: work that is queued behind finds them there. That is for the small and frequent; locking the pages of a
/// whole bank would cost more than it saves.
///
/// # Panics
/// If `shape` is not one of that many values.
pub fn upload<T: Element>(values: &[T], shape: &[i64], device: Device) -> Tensor {
    let tensor = Tensor::from_slice(values).view(shape);
    match device {
        Device::Cpu => tensor,
        Device::Cuda(_) => tensor.internal_pin_memory(device).to_device_(device, T::KIND, true, false),
        _ => tensor.to_device(device),
    }
}
