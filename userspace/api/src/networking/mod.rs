//! `networking.istio.io` (v1alpha3, v1beta1, v1): how traffic is routed and balanced.

mod connection_pool;
mod destination_rule;
mod envoy_filter;
mod gateway;
mod http_action;
mod http_match;
mod load_balancer;
mod proxy_config;
mod service_entry;
mod sidecar;
mod tls_settings;
mod virtual_service;
mod workload_entry;
mod workload_group;

pub use connection_pool::{
    ConnectionPoolSettings, H2UpgradePolicy, Http2KeepAlive, HttpSettings, OutlierDetection,
    RetryBudget, TcpKeepalive, TcpSettings,
};
pub use destination_rule::{
    DestinationRule, DestinationRuleSpec, PortSelector, PortTrafficPolicy, ProxyProtocol,
    ProxyProtocolVersion, Subset, TrafficPolicy, Tunnel,
};
pub use envoy_filter::{
    EnvoyApplyTo, EnvoyClusterMatch, EnvoyConfigPatch, EnvoyFilter, EnvoyFilterChainMatch,
    EnvoyFilterClass, EnvoyFilterMatch, EnvoyFilterSpec, EnvoyListenerMatch, EnvoyObjectMatch,
    EnvoyPatch, EnvoyPatchContext, EnvoyPatchOperation, EnvoyProxyMatch, EnvoyRouteAction,
    EnvoyRouteConfigurationMatch, EnvoyRouteMatch, EnvoySubFilterMatch, EnvoyVirtualHostMatch,
    EnvoyWaypointMatch, EnvoyWaypointRouteMatch,
};
pub use gateway::{
    Gateway, GatewaySpec, Port, Server, ServerTlsMode, ServerTlsSettings, TlsCertificate,
    TlsProtocolVersion,
};
pub use http_action::{
    CorsPolicy, Delegate, DerivePort, Fault, FaultAbort, FaultDelay, HeaderOperations, Headers,
    HttpDirectResponse, HttpMirrorPolicy, HttpRedirect, HttpResponseBody, HttpRetry, HttpRewrite,
    RegexRewrite, UnmatchedPreflights,
};
pub use http_match::HttpMatch;
pub use load_balancer::{
    ConsistentHash, CookieAttribute, HttpCookie, LoadBalancer, LocalityDistribute,
    LocalityFailover, LocalityLbSetting, Maglev, RingHash, SimpleLb, Warmup, ZoneAwareLbSetting,
};
pub use proxy_config::{ProxyConfig, ProxyConfigSpec, ProxyImage};
pub use service_entry::{
    Resolution, ServiceEntry, ServiceEntryLocation, ServiceEntrySpec, ServicePort,
};
pub use sidecar::{
    CaptureMode, EgressListener, IngressListener, LabelSelector, Sidecar, SidecarOutboundMode,
    SidecarOutboundPolicy, SidecarPort, SidecarSpec,
};
pub use tls_settings::{ClientTlsMode, ClientTlsSettings};
pub use virtual_service::{
    Destination, HttpRoute, HttpRouteDestination, L4Match, RouteDestination, TcpRoute, TlsMatch,
    TlsRoute, VirtualService, VirtualServiceSpec,
};
pub use workload_entry::{WorkloadEntry, WorkloadEntrySpec};
pub use workload_group::{
    ExecProbe, GrpcProbe, HttpProbe, ProbeHeader, ReadinessProbe, TcpProbe, WorkloadGroup,
    WorkloadGroupMetadata, WorkloadGroupSpec,
};
