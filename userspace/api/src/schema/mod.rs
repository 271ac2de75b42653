//! CustomResourceDefinitions of Istio's kinds, from the types of this crate.
//!
//! [`words`] is the vocabulary of the attributes on fields, [`structural`] makes what Kubernetes calls
//! a structural schema of the JSON schema that `schemars` derives, and [`crd`] adds what belongs to
//! the kind as a whole: names, versions, columns.

mod crd;
mod outline;
mod structural;
mod words;

pub use crd::{
    Field, custom_resource_definition, definition_name, short_names, spec_fields, spec_schema,
    stored_version,
};
pub use outline::{outline, outline_fields};
pub use structural::{SchemaError, structural};
pub(crate) use words::{
    MOST_ROUTES, alias, any_duration, environment, exclusive, free, int_or_string, labels,
    list_map, match_labels, max_items, min_properties, module_url, named_ports, nullable, one_of,
    port, port_keys, required, rule, selector_labels, shares, short_texts,
};

#[cfg(test)]
mod tests;
