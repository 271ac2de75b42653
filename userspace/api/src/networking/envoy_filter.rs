//! Istio `networking/v1alpha3.EnvoyFilter`: changes of Envoy's own configuration.
//!
//! Fairlead has no Envoy to patch: the resource is read and shown, and has no effect.

use serde::Deserialize;
use serde_json::Value;

use super::sidecar::LabelSelector;
use crate::{Object, PolicyTargetReference, StringMap};

/// Patches of Envoy's configuration.
pub type EnvoyFilter = Object<EnvoyFilterSpec>;

/// `spec` of an [`EnvoyFilter`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::exclusive("workloadSelector targetRefs", "only one of workloadSelector and targetRefs can be set")))]
pub struct EnvoyFilterSpec {
    /// The workloads it applies to; all of the namespace if absent.
    pub workload_selector: Option<LabelSelector>,
    /// What it attaches to, in place of a selector.
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// The patches, in order.
    pub config_patches: Vec<EnvoyConfigPatch>,
    /// Order among filters: lower comes first, then the older.
    pub priority: i32,
}

/// `EnvoyFilter.EnvoyConfigObjectPatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyConfigPatch {
    /// Which part of the configuration is changed.
    pub apply_to: EnvoyApplyTo,
    /// Which objects of it are changed; all if absent.
    #[serde(rename = "match")]
    pub matches: Option<EnvoyObjectMatch>,
    /// The change.
    pub patch: Option<EnvoyPatch>,
}

/// `EnvoyFilter.ApplyTo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EnvoyApplyTo {
    /// Unset.
    #[default]
    Invalid,
    /// Listeners.
    Listener,
    /// Filter chains of listeners.
    FilterChain,
    /// Network filters of a chain.
    NetworkFilter,
    /// HTTP filters of the connection manager.
    HttpFilter,
    /// Route configurations.
    RouteConfiguration,
    /// Virtual hosts of a route configuration.
    VirtualHost,
    /// Routes of a virtual host.
    HttpRoute,
    /// Clusters.
    Cluster,
    /// Configurations of extensions.
    ExtensionConfig,
    /// The bootstrap.
    Bootstrap,
    /// Listener filters.
    ListenerFilter,
}

/// `EnvoyFilter.EnvoyConfigObjectMatch`; at most one kind of object is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::one_of("listener routeConfiguration cluster waypoint"), transform = crate::schema::rule(
        "(has(self.context) && self.context == 'WAYPOINT') == has(self.waypoint)",
        "waypoint belongs to the context WAYPOINT"
    )))]
pub struct EnvoyObjectMatch {
    /// Which side of which proxies.
    pub context: EnvoyPatchContext,
    /// Properties of the proxy.
    pub proxy: Option<EnvoyProxyMatch>,
    /// Properties of a listener.
    pub listener: Option<EnvoyListenerMatch>,
    /// Properties of a route configuration.
    pub route_configuration: Option<EnvoyRouteConfigurationMatch>,
    /// Properties of a cluster.
    pub cluster: Option<EnvoyClusterMatch>,
    /// Properties of a waypoint's configuration; only in the context WAYPOINT.
    pub waypoint: Option<EnvoyWaypointMatch>,
}

/// `EnvoyFilter.PatchContext`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EnvoyPatchContext {
    /// Sidecars and gateways.
    #[default]
    Any,
    /// Inbound side of sidecars.
    SidecarInbound,
    /// Outbound side of sidecars.
    SidecarOutbound,
    /// Gateways.
    Gateway,
    /// Waypoints.
    Waypoint,
}

/// `EnvoyFilter.ProxyMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyProxyMatch {
    /// Regular expression of the proxy's version.
    pub proxy_version: String,
    /// Entries of the proxy's metadata.
    pub metadata: StringMap,
}

/// `EnvoyFilter.ClusterMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyClusterMatch {
    /// Port of the service.
    pub port_number: u32,
    /// Host name of the service.
    pub service: String,
    /// Subset of the service.
    pub subset: String,
    /// Name of the cluster; stands for all the others.
    pub name: String,
}

/// `EnvoyFilter.ListenerMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyListenerMatch {
    /// Port of the listener.
    pub port_number: u32,
    /// Name of the port; not used.
    pub port_name: String,
    /// A filter chain of the listener.
    pub filter_chain: Option<EnvoyFilterChainMatch>,
    /// Name of a listener filter.
    pub listener_filter: String,
    /// Name of the listener.
    pub name: String,
}

/// `ListenerMatch.FilterChainMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyFilterChainMatch {
    /// Name of the chain.
    pub name: String,
    /// SNI of the chain's match.
    pub sni: String,
    /// Transport protocol of the chain's match.
    pub transport_protocol: String,
    /// Application protocols of the chain's match, comma-separated.
    pub application_protocols: String,
    /// A filter of the chain.
    pub filter: Option<EnvoyFilterMatch>,
    /// Destination port of the chain's match.
    pub destination_port: u32,
}

/// `ListenerMatch.FilterMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyFilterMatch {
    /// Name of the filter.
    pub name: String,
    /// A filter within the filter.
    pub sub_filter: Option<EnvoySubFilterMatch>,
}

/// `ListenerMatch.SubFilterMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoySubFilterMatch {
    /// Name of the filter.
    pub name: String,
}

/// `EnvoyFilter.RouteConfigurationMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyRouteConfigurationMatch {
    /// Port of the service or gateway.
    pub port_number: u32,
    /// Name of the gateway's port.
    pub port_name: String,
    /// Gateway, as `namespace/name`.
    pub gateway: String,
    /// A virtual host.
    pub vhost: Option<EnvoyVirtualHostMatch>,
    /// Name of the route configuration.
    pub name: String,
}

/// `RouteConfigurationMatch.VirtualHostMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyVirtualHostMatch {
    /// Name of the virtual host.
    pub name: String,
    /// Domain of the virtual host.
    pub domain_name: String,
    /// A route.
    pub route: Option<EnvoyRouteMatch>,
}

/// `RouteConfigurationMatch.RouteMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyRouteMatch {
    /// Name of the route.
    pub name: String,
    /// What the route does.
    pub action: EnvoyRouteAction,
}

/// `RouteMatch.Action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EnvoyRouteAction {
    /// Any of them.
    #[default]
    Any,
    /// Forwards.
    Route,
    /// Redirects.
    Redirect,
    /// Answers itself.
    DirectResponse,
}

/// `EnvoyFilter.WaypointMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyWaypointMatch {
    /// A filter of the chain.
    pub filter: Option<EnvoyFilterMatch>,
    /// Port of the service.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub port_number: u32,
    /// A route.
    pub route: Option<EnvoyWaypointRouteMatch>,
}

/// `WaypointMatch.RouteMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyWaypointRouteMatch {
    /// Name of the route.
    pub name: String,
}

/// `EnvoyFilter.Patch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyPatch {
    /// How the value is applied.
    pub operation: EnvoyPatchOperation,
    /// The value, in Envoy's own form.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::free"))]
    pub value: Option<Value>,
    /// Where a filter is inserted among those of Istio.
    pub filter_class: EnvoyFilterClass,
}

/// `Patch.Operation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EnvoyPatchOperation {
    /// Unset.
    #[default]
    Invalid,
    /// Merges into what is there.
    Merge,
    /// Adds at the end.
    Add,
    /// Removes.
    Remove,
    /// Inserts before what is matched.
    InsertBefore,
    /// Inserts after what is matched.
    InsertAfter,
    /// Inserts at the beginning.
    InsertFirst,
    /// Replaces.
    Replace,
    /// Merges, with lists replaced.
    MergeAndReplaceList,
}

/// `Patch.FilterClass`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EnvoyFilterClass {
    /// Where the operation says.
    #[default]
    Unspecified,
    /// After authentication.
    Authn,
    /// After authorization.
    Authz,
    /// Before statistics.
    Stats,
}
