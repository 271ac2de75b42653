//! JSON values as YAML. Texts that could mean something else are quoted as JSON, which YAML reads
//! alike.

use std::fmt::Write;

use serde_json::Value;

/// The YAML text of a value.
pub(crate) fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, 0, false);
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

fn write_value(out: &mut String, value: &Value, indent: usize, in_list: bool) {
    match value {
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                pad(out, indent);
                out.push('-');
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        out.push(' ');
                        write_value(out, item, indent + 1, true);
                    }
                    Value::Array(list) if !list.is_empty() => {
                        out.push('\n');
                        write_value(out, item, indent + 1, false);
                    }
                    scalar => scalar_line(out, scalar),
                }
            }
        }
        Value::Object(map) if !map.is_empty() => {
            for (index, (key, item)) in map.iter().enumerate() {
                if index > 0 || !in_list {
                    pad(out, indent);
                }
                let _ = write!(out, "{}:", text(key));
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        out.push('\n');
                        write_value(out, item, indent + 1, false);
                    }
                    Value::Array(list) if !list.is_empty() => {
                        out.push('\n');
                        write_value(out, item, indent, false);
                    }
                    scalar => scalar_line(out, scalar),
                }
            }
        }
        scalar => {
            out.push_str(&inline(scalar));
            out.push('\n');
        }
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n("  ", indent));
}

fn scalar_line(out: &mut String, value: &Value) {
    let _ = writeln!(out, " {}", inline(value));
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(value) => text(value),
        // Empty lists and objects, numbers, truth values and null are written as in JSON.
        other => other.to_string(),
    }
}

/// A text, bare where nobody could take it for anything else.
fn text(value: &str) -> String {
    let plain = value.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !matches!(
            value.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if plain { value.to_owned() } else { Value::from(value).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_values() {
        let value = json!({
            "a": [{"b": "x", "c": ["w", "no"]}, [1, 2], {}, "z: z"],
            "d": {"e": null, "f": true},
            "g h": [],
        });
        let expected = "a:\n- b: x\n  c:\n  - w\n  - \"no\"\n-\n  - 1\n  - 2\n- {}\n- \"z: z\"\nd:\n  e: null\n  f: true\n\"g h\": []\n";
        assert_eq!(to_yaml(&value), expected);
        assert_eq!(to_yaml(&json!("1")), "\"1\"\n");
    }
}
