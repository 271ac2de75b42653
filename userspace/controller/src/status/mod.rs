//! Conditions and events: what became of each resource.
