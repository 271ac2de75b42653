//! How results are printed.

mod table;
mod yaml;

pub(crate) use table::Table;
pub(crate) use yaml::to_yaml;

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// JSON for programs.
    Json,
    /// YAML.
    Yaml,
}
