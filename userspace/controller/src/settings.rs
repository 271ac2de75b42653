//! Settings of the controller.
