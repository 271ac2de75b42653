//! The daemon's settings file and log directives.

use fairlead_config::source::from_yaml;
use fairlead_node::settings::{Options, Settings};

use crate::input;

/// A file is refused in words that name a line, or completes the flags without changing them;
/// what is taken is within bounds.
pub fn run(data: &[u8]) {
    let Some(text) = input::text(data) else { return };
    match from_yaml::<Options>(text) {
        Ok(file) => {
            assert_eq!(Options::default().over(file.clone()), file);
            assert_eq!(file.clone().over(Options::default()), file);
            let flags = Options { node: Some("from-a-flag".to_owned()), ..Options::default() };
            match Settings::resolve(flags.over(file)) {
                Ok(settings) => {
                    assert_eq!(settings.node, "from-a-flag", "flags come first");
                    assert!(settings.admin.ip().is_loopback());
                    assert!((1..=256).contains(&settings.run.workers));
                    assert!(settings.identity.ttl.as_secs() >= 5);
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        Err(message) => assert!(message.starts_with("line "), "{message}"),
    }
    if let Err(message) = fairlead_node::logging::filter(text) {
        assert!(!message.is_empty());
    }
}
