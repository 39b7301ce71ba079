//! What the features are worth: embeddings of a whole data set, weighted kNN, linear classification, fine-tuning,
//! label-free measures, neighbours, clusters.

pub mod cluster;
pub mod describe;
pub mod features;
pub mod finetune;
pub mod knn;
pub mod linear;
pub mod monitor;
pub mod pca;
pub mod retrieval;
pub mod spread;
pub mod stratified;
