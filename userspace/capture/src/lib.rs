//! eBPF capture, network namespaces, cgroups, enrolment.
