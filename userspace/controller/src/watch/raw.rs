//! Objects as the API server sends them, of any kind, without what nobody needs.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// An object of any kind. `managedFields`, as a rule the greater half, is skipped while it is
/// read.
#[derive(Clone)]
pub struct Raw {
    /// Name, namespace and version, as kube's watcher asks for them.
    meta: ObjectMeta,
    /// All of `metadata` but `managedFields`.
    pub metadata: Map<String, Value>,
    /// All fields beside `metadata`, `apiVersion` and `kind`.
    pub fields: Map<String, Value>,
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        write!(f, "Raw({}/{})", name(&self.meta.namespace), name(&self.meta.name))
    }
}

impl Raw {
    /// A text of the metadata; empty if it is not there.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        self.metadata.get(field).and_then(Value::as_str).unwrap_or_default()
    }
}

/// A map without one of its keys.
struct Metadata(Map<String, Value>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("metadata")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Metadata, A::Error> {
                let mut fields = Map::new();
                while let Some(key) = access.next_key::<String>()? {
                    if key == "managedFields" {
                        access.next_value::<IgnoredAny>()?;
                    } else {
                        fields.insert(key, access.next_value()?);
                    }
                }
                Ok(Metadata(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a Kubernetes object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
                let (mut metadata, mut fields) = (Map::new(), Map::new());
                while let Some(key) = access.next_key::<String>()? {
                    match key.as_str() {
                        "metadata" => metadata = access.next_value::<Metadata>()?.0,
                        "apiVersion" | "kind" => {
                            access.next_value::<IgnoredAny>()?;
                        }
                        _ => {
                            fields.insert(key, access.next_value()?);
                        }
                    }
                }
                let text = |field: &str| {
                    metadata.get(field).and_then(Value::as_str).map(ToOwned::to_owned)
                };
                let meta = ObjectMeta {
                    name: text("name"),
                    namespace: text("namespace"),
                    resource_version: text("resourceVersion"),
                    ..ObjectMeta::default()
                };
                Ok(Raw { meta, metadata, fields })
            }
        }

        deserializer.deserialize_map(Object)
    }
}

impl kube::Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(dt: &ApiResource) -> Cow<'_, str> {
        dt.kind.as_str().into()
    }

    fn group(dt: &ApiResource) -> Cow<'_, str> {
        dt.group.as_str().into()
    }

    fn version(dt: &ApiResource) -> Cow<'_, str> {
        dt.version.as_str().into()
    }

    fn api_version(dt: &ApiResource) -> Cow<'_, str> {
        dt.api_version.as_str().into()
    }

    fn plural(dt: &ApiResource) -> Cow<'_, str> {
        dt.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
