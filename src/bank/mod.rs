//! The memory bank.
