//! What is counted.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Indices of `COUNTERS`, one per outcome.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter {
            $($(#[$doc])* $name,)*
        }

        impl Counter {
            /// All of them, in the order of their index.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The name to show.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

counters! {
    /// An outbound connection went to the daemon.
    CapturedOutbound = "captured_outbound",
    /// An inbound connection went to the daemon.
    CapturedInbound = "captured_inbound",
    /// To loopback: stays in the pod.
    PassedLoopback = "passed_loopback",
    /// An excluded port or range, outbound.
    PassedExcludedOutbound = "passed_excluded_outbound",
    /// An excluded port, inbound.
    PassedExcludedInbound = "passed_excluded_inbound",
    /// The node itself, at a port that the pod declares for probes.
    PassedProbe = "passed_probe",
    /// Refused: a namespace that nobody enrolled, and the setting says refuse.
    RefusedUnknownNetns = "refused_unknown_netns",
    /// Refused: enrolled, and no daemon listens for outbound connections.
    RefusedNoOutboundListener = "refused_no_outbound_listener",
    /// Refused: enrolled, and no daemon listens for inbound connections.
    RefusedNoInboundListener = "refused_no_inbound_listener",
    /// Refused: the original destination could not be kept with the socket.
    RefusedNoMemory = "refused_no_memory",
    /// Refused: the socket is bound to a device and could not be freed from it.
    RefusedBoundDevice = "refused_bound_device",
    /// Refused: no source address for the way to the daemon could be had.
    RefusedNoSource = "refused_no_source",
    /// Refused: an application took a delivery source for its own.
    RefusedForgedSource = "refused_forged_source",
    /// Refused: a connection to the daemon's inbound listener past steering.
    RefusedDirectInbound = "refused_direct_inbound",
    /// Refused: a protocol that would carry TCP past capture (MPTCP, SCTP…).
    RefusedProtocol = "refused_protocol",
    /// Refused: the programs found no settings.
    RefusedNoSettings = "refused_no_settings",
    /// Refused: the table of flows that the daemon has not yet taken is full.
    RefusedFlowsFull = "refused_flows_full",
    /// Refused: the table of deliveries that the application has not yet accepted is full.
    RefusedClientsFull = "refused_clients_full",
    /// A flow was published to the daemon.
    FlowPublished = "flow_published",
    /// An unused flow was withdrawn because its connection never came about.
    FlowWithdrawn = "flow_withdrawn",
    /// A delivery's client was recorded.
    ClientPublished = "client_published",
    /// An unused client was withdrawn because its delivery never came about.
    ClientWithdrawn = "client_withdrawn",
    /// A delivery reached the application and shows its real client.
    ClientAttached = "client_attached",
    /// A connection from a delivery source had no record, or one for another destination.
    ClientMiss = "client_miss",
    /// A peer address was shown in place of the daemon's.
    PeerShown = "peer_shown",
}
