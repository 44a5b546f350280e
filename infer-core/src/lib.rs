//! infer-core
