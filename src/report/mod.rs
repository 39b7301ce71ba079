//! Progress, metrics files and pictures.
