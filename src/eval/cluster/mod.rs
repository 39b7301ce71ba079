//! What there is in images without labels: groups of similar ones, and pairs that are nearly the same.
//!
//! Shapes: N images, D numbers each (unit vectors), C clusters.

pub mod agreement;
pub mod duplicates;
pub mod kmeans;

pub use agreement::{Agreement, agreement};
pub use duplicates::{Duplicates, Pair, near_duplicates};
pub use kmeans::{Clustering, KMeans};
