//! PyTorch files in, standard files out.

pub mod torch;
