//! Resources to snapshot: validation, compilation, indices.
