//! What the features are worth.

pub mod knn;
