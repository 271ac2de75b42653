//! Which node speaks: tokens of node daemons.
