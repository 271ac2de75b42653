//! Keys, certificates, CA and rotation.
