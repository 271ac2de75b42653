//! Aligned columns, as kubectl prints them.

use std::io::{self, Write};

/// Spaces between columns.
const GAP: usize = 2;

/// Rows under a heading; every column but the last is as wide as its widest cell.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub(crate) fn new(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned)] }
    }

    /// Adds a row. Line breaks and control characters become spaces: what was written in a file
    /// must not move the terminal's cursor.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| {
            cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>()
        }));
    }

    /// Prints it.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                line.push_str(cell);
                let fill = width - cell.chars().count() + GAP;
                line.extend(std::iter::repeat_n(' ', fill));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(["A", "LONG", "LAST"]);
        table.row(["é".into(), "x".into(), "a\nb\u{1b}c".into()]);
        table.row(["long cell".into(), String::new(), "c".into()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "A          LONG  LAST\né          x     a b c\nlong cell        c\n");
    }
}
