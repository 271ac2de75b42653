//! Capture against the kernel: as root, in cgroups, network namespaces and pins that each test
//! makes and removes. One binary, so that what the tests share is built once.
#![expect(unsafe_code, reason = "sockets that the standard library cannot make")]
#![expect(clippy::expect_used, reason = "a step that fails is the test's failure")]

mod app;
mod bed;
mod bounds;
mod bypass;
mod inbound;
mod lifecycle;
mod outbound;
mod probe;
mod upkeep;

/// Not a test: what applications in pods run. See [`app`].
#[test]
fn app_process() {
    app::process();
}
