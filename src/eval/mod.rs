//! What the features are worth: embeddings of a whole data set, weighted kNN, and label-free measures.

pub mod features;
pub mod knn;
pub mod monitor;
pub mod pca;
pub mod retrieval;
pub mod spread;
