//! Between tensors and plain memory.

use tch::{Device, Kind, Tensor, no_grad};

/// The elements of `tensor` as f32, in logical (row-major) order whatever its strides, kind and device.
pub fn to_vec_f32(tensor: &Tensor) -> Vec<f32> {
    no_grad(|| {
        let tensor = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let mut values = vec![0.0; tensor.numel()];
        let count = values.len();
        tensor.copy_data(&mut values, count);
        values
    })
}

/// Images as the loader writes them, `pixels` `[B, H, W, 3]`, as the encoder wants them: a `[B, 3, H, W]` view
/// whose memory is channels-last. Copies once.
///
/// # Panics
/// If `pixels` does not hold B·H·W·3 numbers.
pub fn from_slice_nhwc(pixels: &[f32], [batch, height, width]: [usize; 3]) -> Tensor {
    assert_eq!(
        pixels.len(),
        batch * height * width * 3,
        "pixels of a {batch}×{height}×{width}×3 batch expected"
    );
    Tensor::from_slice(pixels).view([batch as i64, height as i64, width as i64, 3]).permute([0, 3, 1, 2])
}

/// `tensor` with channels-last memory if it has four dimensions, else contiguous.
pub(crate) fn channels_last(tensor: &Tensor) -> Tensor {
    if tensor.dim() == 4 {
        tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
    } else {
        tensor.contiguous()
    }
}

/// Whether two tensors of equal shape keep the same element at the same offset. The strides of dimensions of
/// size 1 mean nothing.
pub(crate) fn same_layout(a: &Tensor, b: &Tensor) -> bool {
    let shape = a.size();
    shape == b.size()
        && shape.iter().zip(a.stride().iter().zip(b.stride())).all(|(&size, (&a, b))| size == 1 || a == b)
}

/// Whether the elements fill one block of memory without holes or overlap, in whatever order.
pub(crate) fn is_dense(tensor: &Tensor) -> bool {
    let mut dims: Vec<(i64, i64)> =
        tensor.stride().into_iter().zip(tensor.size()).filter(|&(_, size)| size != 1).collect();
    dims.sort_unstable();
    let mut expected = 1;
    dims.iter().all(|&(stride, size)| {
        let dense = stride == expected;
        expected *= size;
        dense
    })
}

/// The memory of a dense f32 tensor on the CPU, in storage order.
///
/// # Safety
/// Until the slice is gone nothing may write the tensor's storage.
/// # Panics
/// If the tensor is not a dense f32 tensor on the CPU.
pub(crate) unsafe fn dense_f32(tensor: &Tensor) -> &[f32] {
    let (start, length) = dense_f32_block(tensor);
    // SAFETY: the block is what `dense_f32_block` says; the caller promises that nobody writes to it.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// The memory of a dense f32 tensor on the CPU, in storage order, to be written.
///
/// # Safety
/// Until the slice is gone nothing may read or write the tensor's storage in another way: not through another
/// handle of the tensor or a view, and not from libtorch on another thread.
/// # Panics
/// If the tensor is not a dense f32 tensor on the CPU.
pub(crate) unsafe fn dense_f32_mut(tensor: &mut Tensor) -> &mut [f32] {
    let (start, length) = dense_f32_block(tensor);
    // SAFETY: the block is what `dense_f32_block` says; the caller promises that nothing else touches it.
    unsafe { std::slice::from_raw_parts_mut(start, length) }
}

/// Start and length of the block of memory, all initialised, that a dense f32 tensor on the CPU fills.
fn dense_f32_block(tensor: &Tensor) -> (*mut f32, usize) {
    assert!(
        tensor.device() == Device::Cpu && tensor.kind() == Kind::Float && is_dense(tensor),
        "a dense f32 tensor on the CPU expected, found {:?} {:?} with strides {:?} on {:?}",
        tensor.kind(),
        tensor.size(),
        tensor.stride(),
        tensor.device()
    );
    match tensor.numel() {
        // libtorch's pointer to nothing is null, which no slice may start with.
        0 => (std::ptr::NonNull::dangling().as_ptr(), 0),
        length => (tensor.data_ptr().cast(), length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|number| number as f32).collect()
    }

    #[test]
    fn pixels_arrive_where_they_belong_without_a_change_of_memory() {
        let pixels = numbers(2 * 4 * 5 * 3);
        let images = from_slice_nhwc(&pixels, [2, 4, 5]);
        assert_eq!(images.size(), [2, 3, 4, 5]);
        assert_eq!(images.stride(), [60, 1, 15, 3]);
        assert_eq!(images.double_value(&[1, 2, 3, 4]), f64::from(pixels[60 + 3 * 15 + 4 * 3 + 2]));
    }

    #[test]
    fn a_vector_has_logical_order_whatever_the_strides() {
        let tensor = Tensor::from_slice(&numbers(24)).view([2, 3, 2, 2]);
        assert_eq!(to_vec_f32(&tensor), numbers(24));
        let permuted = channels_last(&tensor);
        assert_ne!(permuted.stride(), tensor.stride());
        assert_eq!(to_vec_f32(&permuted), numbers(24));
        assert_eq!(to_vec_f32(&tensor.to_kind(Kind::BFloat16)), numbers(24));
    }

    #[test]
    fn density_and_layout_ignore_dimensions_of_size_one() {
        let tensor = Tensor::zeros([4, 3, 1, 1], (Kind::Float, Device::Cpu));
        let other = channels_last(&tensor);
        assert!(same_layout(&tensor, &other) && is_dense(&tensor) && is_dense(&other));
        let plane = Tensor::zeros([4, 3, 2, 2], (Kind::Float, Device::Cpu));
        assert!(!same_layout(&plane, &channels_last(&plane)) && is_dense(&channels_last(&plane)));
        assert!(!is_dense(&plane.narrow(3, 0, 1)));
        assert!(!is_dense(&Tensor::zeros([1], (Kind::Float, Device::Cpu)).expand([5], false)));
    }

    #[test]
    #[should_panic(expected = "dense f32 tensor")]
    fn a_tensor_with_holes_gives_no_slice() {
        let mut holes = Tensor::zeros([4, 4], (Kind::Float, Device::Cpu)).narrow(1, 0, 2);
        // SAFETY: the tensor has no other handle.
        let _ = unsafe { dense_f32_mut(&mut holes) };
    }
}
