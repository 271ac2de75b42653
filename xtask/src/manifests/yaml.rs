//! JSON values as YAML, in block style: what a person reads in a diff.

use std::fmt::Write as _;

use serde_json::Value;

/// The text of a document.
pub(super) fn text(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                pad(indent, out);
                out.push_str(&scalar(key));
                out.push(':');
                child(value, indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                pad(indent, out);
                out.push('-');
                match item {
                    // The first field stands beside the dash.
                    Value::Object(map) if !map.is_empty() => {
                        let mut inner = String::new();
                        block(item, indent + 1, &mut inner);
                        out.push(' ');
                        out.push_str(inner.trim_start());
                    }
                    _ => child(item, indent, out),
                }
            }
        }
        _ => {
            pad(indent, out);
            out.push_str(&flow(value));
            out.push('\n');
        }
    }
}

fn child(value: &Value, indent: usize, out: &mut String) {
    let nested = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if nested {
        out.push('\n');
        block(value, indent + 1, out);
    } else {
        let _ = writeln!(out, " {}", flow(value));
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n("  ", indent));
}

fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        // JSON's numbers, words and empty containers are YAML's.
        other => other.to_string(),
    }
}

/// A text: as it is where no reader could take it for something else, otherwise in quotes.
fn scalar(text: &str) -> String {
    const WORDS: &[&str] =
        &["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"];
    // A letter, or a path; a point alone may begin a number.
    let mut start = text.trim_start_matches(['.', '/']).bytes();
    let inner = |b: u8| b.is_ascii_alphanumeric() || b" -_./,;()'`*<>+=!?&|".contains(&b);
    let plain = start.next().is_some_and(|b| b.is_ascii_alphabetic())
        && text.bytes().all(inner)
        && !text.ends_with(' ')
        && !WORDS.contains(&text.trim_start_matches('.').to_ascii_lowercase().as_str());
    // A text of JSON is one of YAML.
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn blocks_and_quotes() {
        let value = json!({
            "a": {"b": [1, {"c": "x", "d": []}, ["z"]], "e": {}},
            "on": "no", "n": "1", "p": ".metadata.name", "q": ".5", "r": "has: colon", "s": "", "t": "- x", "u": true,
        });
        let text = text(&value);
        let wanted = "a:\n  b:\n    - 1\n    - c: x\n      d: []\n    -\n      - z\n  e: {}\n\"on\": \"no\"\n\"n\": \"1\"\np: .metadata.name\nq: \".5\"\nr: \"has: colon\"\ns: \"\"\nt: \"- x\"\nu: true\n";
        assert_eq!(text, wanted);
    }
}
