//! ConfigMap: only the one that holds MeshConfig means anything.

use fairlead_api::core::ConfigMap;

use crate::source::mesh;
use crate::source::sink::Sink;

pub(in super::super) fn config_map(object: &ConfigMap, sink: &mut Sink<'_>) {
    mesh::check(object, sink);
}
