//! Scenarios with real traffic in real namespaces.
