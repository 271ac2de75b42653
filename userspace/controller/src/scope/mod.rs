//! Which node needs which object.
