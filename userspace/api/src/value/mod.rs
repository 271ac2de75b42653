//! Values with a written form of their own: protobuf-JSON durations, string matches, percentages,
//! int-or-string, and the selectors that several APIs share.

mod duration;
mod int_or_string;
mod selector;
mod string_map;
mod string_match;

#[cfg(feature = "schema")]
pub(crate) use duration::MAX_DURATION_TEXT;
pub use duration::{MAX_DURATION, ProtoDuration, parse_duration};
pub use int_or_string::IntOrString;
pub use selector::{Percent, PolicyTargetReference, WorkloadSelector};
pub use string_map::StringMap;
pub use string_match::StringMatch;
