//! Listeners: gRPC and webhook over TLS, monitoring over plain HTTP.
