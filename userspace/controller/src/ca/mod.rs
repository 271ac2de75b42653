//! The certificate authority of the mesh.
