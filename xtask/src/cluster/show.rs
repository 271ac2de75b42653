//! The table of `cluster status`.

use std::fmt::Write;

use fairlead_cluster::Status;

/// A cluster as a table.
pub(super) fn table(status: &Status) -> String {
    let mut text = String::new();
    let stacks = if status.dual_stack { "IPv4 and IPv6" } else { "IPv4" };
    let ready = if status.api_ready { "ready" } else { "not ready" };
    let mib = status.memory >> 20;
    // Writing to a string does not fail.
    let _ = writeln!(text, "cluster {}: API server {ready}, {stacks}, {mib} MiB", status.name);
    let _ = writeln!(text, "  kubeconfig {}", status.kubeconfig);
    let rows = status.nodes.iter().map(|node| {
        [node.name.clone(), node.state.clone(), node.address.clone(), node.pods.to_string()]
    });
    text += &columns(["NODE", "STATE", "ADDRESS", "PODS"], rows);
    let rows = status.components.iter().map(|component| {
        [
            component.component.clone(),
            component.node.clone().unwrap_or_else(|| "-".into()),
            component.pid.map_or_else(|| "not running".into(), |pid| pid.to_string()),
            component.log.clone(),
        ]
    });
    text += &columns(["COMPONENT", "NODE", "PID", "LOG"], rows);
    text
}

fn columns<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "bb".to_owned()], ["cccc".to_owned(), "d".to_owned()]];
        assert_eq!(columns(["X", "Y"], rows.into_iter()), "  X     Y\n  a     bb\n  cccc  d\n");
    }
}
