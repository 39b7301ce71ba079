//! fp32 feature maps on the CPU as plain numbers: what our own kernels work on.

use tch::{Device, Kind, Tensor};

use crate::simd::LANES;

/// Sixteen numbers next to each other: of one pixel, or of one pair of places in a convolution's weights.
pub(super) type Chunk = [f32; LANES];

/// Whether [`ChannelsLast`] can be made of `tensor`: fp32 on the CPU, `[N, C, H, W]`, not empty.
pub(super) fn is_plain(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.kind() == Kind::Float && tensor.numel() > 0 && tensor.dim() == 4
}

/// Whether it can, and has its channels in sixteens.
pub(super) fn fits(tensor: &Tensor) -> bool {
    is_plain(tensor) && tensor.size()[1] % LANES as i64 == 0
}

/// A tensor `[N, C, H, W]`, its memory `[N, H, W, C]` without gaps.
pub(super) struct ChannelsLast {
    /// `[N, H, W, C]`, contiguous, without a graph.
    memory: Tensor,
    /// N, C, H, W.
    pub size: [i64; 4],
}

impl ChannelsLast {
    /// The same numbers; copied only if they lie in another order.
    ///
    /// # Panics
    /// If `tensor` is not fp32 `[N, C, H, W]` on the CPU, or is empty.
    pub fn of(tensor: &Tensor) -> Self {
        assert!(is_plain(tensor), "fp32 maps on the CPU, found {tensor:?}");
        let (n, c, h, w) = tensor.size4().expect("four axes");
        let memory = tensor.detach().permute([0, 2, 3, 1]).contiguous();
        ChannelsLast { memory, size: [n, c, h, w] }
    }

    /// Chunks of channels of one pixel.
    pub fn chunks_per_pixel(&self) -> usize {
        self.size[1] as usize / LANES
    }

    /// All numbers, pixel by pixel.
    pub fn numbers(&self) -> &[f32] {
        // SAFETY: fp32 numbers on the CPU without gaps (`of`, `Fresh::new`); nothing changes them while `self` is borrowed: what a
        // network computes is written once.
        unsafe { std::slice::from_raw_parts(self.memory.data_ptr().cast(), self.memory.numel()) }
    }

    /// The same in sixteens.
    ///
    /// # Panics
    /// If the channels do not come in sixteens.
    pub fn chunks(&self) -> &[Chunk] {
        assert!(self.size[1] % LANES as i64 == 0, "channels in sixteens, found {}", self.size[1]);
        self.numbers().as_chunks().0
    }
}

/// New memory for maps `[N, C, H, W]`, to be written once.
pub(super) struct Fresh(ChannelsLast);

impl Fresh {
    /// With anything in it.
    ///
    /// # Panics
    /// If the channels do not come in sixteens.
    pub fn new(size: [i64; 4]) -> Self {
        let [n, c, h, w] = size;
        assert!(c % LANES as i64 == 0, "channels in sixteens, found {c}");
        let memory = Tensor::empty([n, h, w, c], (Kind::Float, Device::Cpu));
        Fresh(ChannelsLast { memory, size })
    }

    /// N, C, H, W.
    pub fn size(&self) -> [i64; 4] {
        self.0.size
    }

    /// All numbers, pixel by pixel.
    pub fn chunks_mut(&mut self) -> &mut [Chunk] {
        let memory = &self.0.memory;
        // SAFETY: as in `ChannelsLast::numbers`, and in sixteens; nobody else has this memory before `into_tensor`.
        unsafe { std::slice::from_raw_parts_mut(memory.data_ptr().cast(), memory.numel() / LANES) }
    }

    /// The tensor, `[N, C, H, W]`, its memory as it is.
    pub fn into_tensor(self) -> Tensor {
        // Not as a view: those of one mode of the graph may not be written in the other.
        self.0.memory.permute([0, 3, 1, 2]).detach()
    }
}
