//! SGD as the published program had it, with its momentum in the open.
