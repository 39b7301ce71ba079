//! What the features are worth: embeddings of a whole data set, weighted kNN, label-free measures, neighbours, clusters.

pub mod cluster;
pub mod describe;
pub mod features;
pub mod knn;
pub mod monitor;
pub mod retrieval;
pub mod spread;
