//! Accept, detect, carry: the data plane.
