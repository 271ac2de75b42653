//! Streams to node daemons.
