//! Edits of a network configuration list, as text: one plugin in, the same plugin out, and every
//! other byte as its author wrote it.

use std::ops::Range;

use serde_json::Value;

use crate::plugin::TYPE;

/// Why a file cannot be edited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfError {
    /// It is not JSON.
    #[error("it is not JSON: {0}")]
    Json(String),
    /// It is JSON and no network configuration.
    #[error("it is no network configuration: {0}")]
    Shape(&'static str),
}

/// The plugins of a list, by their place in the text.
struct Plugins {
    elements: Vec<Range<usize>>,
}

/// Puts `entry` at the end of the chain; an earlier entry of ours goes. `None`: there is nothing
/// to change.
///
/// # Errors
/// [`ConfError`].
pub fn enter(text: &str, entry: &str) -> Result<Option<String>, ConfError> {
    let plugins = plugins(text)?;
    let ours = plugins.ours(text);
    if let [only] = ours.as_slice()
        && plugins.elements.last() == plugins.elements.get(*only)
        && plugins.slice(text, *only) == entry
    {
        return Ok(None);
    }
    let others = leave(text)?;
    let base = others.as_deref().unwrap_or(text);
    let plugins = self::plugins(base)?;
    let Some(last) = plugins.elements.last() else {
        return Err(ConfError::Shape("its list of plugins is empty"));
    };
    let (before, after) = base.split_at(last.end);
    Ok(Some(format!("{before},{entry}{after}")))
}

/// Takes all entries of ours out. `None`: there is none.
///
/// # Errors
/// [`ConfError`].
pub fn leave(text: &str) -> Result<Option<String>, ConfError> {
    let mut text = text.to_owned();
    let mut changed = false;
    loop {
        let plugins = plugins(&text)?;
        let Some(ours) = plugins.ours(&text).first().copied() else {
            return Ok(changed.then_some(text));
        };
        // With the comma that belonged to it.
        let own = plugins.elements.get(ours).cloned().unwrap_or_default();
        let cut = match (ours.checked_sub(1), plugins.elements.get(ours + 1)) {
            (Some(before), _) => {
                plugins.elements.get(before).map_or(own.start, |before| before.end)..own.end
            }
            (None, Some(after)) => own.start..after.start,
            (None, None) => {
                return Err(ConfError::Shape("nothing but this plugin is in its list"));
            }
        };
        text.replace_range(cut, "");
        changed = true;
    }
}

/// Whether an entry of ours is in the list.
///
/// # Errors
/// [`ConfError`].
pub fn is_in(text: &str) -> Result<bool, ConfError> {
    Ok(!plugins(text)?.ours(text).is_empty())
}

/// The entry of ours as it is written, if there is one.
#[must_use]
pub fn entry_of(text: &str) -> Option<String> {
    let plugins = plugins(text).ok()?;
    let first = plugins.ours(text).first().copied()?;
    Some(plugins.slice(text, first).to_owned())
}

/// Whether the text is one that runtimes take for a list.
///
/// # Errors
/// [`ConfError`].
pub fn check_list(text: &str) -> Result<(), ConfError> {
    plugins(text).map(drop)
}

/// A list of a single plugin's configuration, which stays as it is inside.
///
/// # Errors
/// [`ConfError`].
pub fn list_of(conf: &str) -> Result<String, ConfError> {
    let value: Value =
        serde_json::from_str(conf).map_err(|error| ConfError::Json(error.to_string()))?;
    let Some(object) = value.as_object() else {
        return Err(ConfError::Shape("it is no object"));
    };
    if object.get("type").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(ConfError::Shape("it has no type"));
    }
    let text = |key: &str| object.get(key).cloned().unwrap_or_else(|| Value::String(String::new()));
    let (version, name) = (text("cniVersion"), text("name"));
    Ok(format!(
        "{{\"cniVersion\":{version},\"name\":{name},\"plugins\":[{}]}}\n",
        conf.trim_matches(is_space)
    ))
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

impl Plugins {
    fn slice<'t>(&self, text: &'t str, index: usize) -> &'t str {
        self.elements.get(index).and_then(|range| text.get(range.clone())).unwrap_or_default()
    }

    fn ours(&self, text: &str) -> Vec<usize> {
        (0..self.elements.len())
            .filter(|index| {
                let plugin: Option<Value> = serde_json::from_str(self.slice(text, *index)).ok();
                plugin.is_some_and(|p| p.get("type").and_then(Value::as_str) == Some(TYPE))
            })
            .collect()
    }
}

/// Finds the elements of `plugins`. The text is checked to be JSON first, so that what follows has
/// only to count brackets and to skip strings.
fn plugins(text: &str) -> Result<Plugins, ConfError> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| ConfError::Json(error.to_string()))?;
    let Some(object) = value.as_object() else {
        return Err(ConfError::Shape("it is no object"));
    };
    let Some(list) = object.get("plugins").and_then(Value::as_array) else {
        return Err(ConfError::Shape("it has no list of plugins"));
    };
    let mut scan = Scan { bytes: text.as_bytes(), at: 0 };
    let mut found = None;
    scan.space();
    scan.at += 1; // {
    loop {
        scan.space();
        match scan.peek() {
            Some(b',') => scan.at += 1,
            Some(b'"') => {
                let key = scan.value();
                scan.space();
                scan.at += 1; // :
                scan.space();
                let name: Option<String> =
                    text.get(key).and_then(|key| serde_json::from_str(key).ok());
                if name.as_deref() == Some("plugins") {
                    if found.is_some() {
                        return Err(ConfError::Shape("it has two lists of plugins"));
                    }
                    found = Some(scan.elements());
                } else {
                    scan.value();
                }
            }
            _ => break,
        }
    }
    let elements = found.unwrap_or_default();
    if elements.len() != list.len() {
        return Err(ConfError::Shape("its list of plugins cannot be taken apart"));
    }
    Ok(Plugins { elements })
}

/// A walk through text that is known to be JSON.
struct Scan<'t> {
    bytes: &'t [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|byte| is_space(char::from(byte))) {
            self.at += 1;
        }
    }

    /// Steps over one value.
    fn value(&mut self) -> Range<usize> {
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.string();
                    if depth == 0 {
                        break;
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 0 => break,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        break;
                    }
                }
                b',' if depth == 0 => break,
                byte if depth == 0 && is_space(char::from(byte)) => break,
                _ => {}
            }
            self.at += 1;
        }
        start..self.at
    }

    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == b'"' {
                return;
            }
        }
    }

    /// Steps over an array.
    fn elements(&mut self) -> Vec<Range<usize>> {
        let mut elements = Vec::new();
        if self.peek() != Some(b'[') {
            self.value();
            return elements;
        }
        self.at += 1;
        loop {
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') | None => {
                    self.at += 1;
                    return elements;
                }
                Some(_) => {
                    let before = self.at;
                    elements.push(self.value());
                    if self.at == before {
                        return elements; // Not reached in JSON.
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = r#"{"type":"fairlead-cni","socket":"/s"}"#;
    const LIST: &str = "{\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"a \\\" ] }\",\n  \"plugins\": [\n    \
                        {\"type\": \"ptp\", \"ipam\": {\"ranges\": [[{}], []]}},\n    \
                        { \"type\" : \"portmap\" }\n  ],\n  \"x\": [1, 2.50]\n}\n";

    #[test]
    fn in_and_out_leaves_no_trace() {
        let entered = enter(LIST, OURS).unwrap().unwrap();
        let value: Value = serde_json::from_str(&entered).unwrap();
        assert_eq!(value["plugins"].as_array().unwrap().len(), 3);
        assert_eq!(value["plugins"][2]["type"], TYPE);
        assert!(is_in(&entered).unwrap() && !is_in(LIST).unwrap());
        assert_eq!(enter(&entered, OURS).unwrap(), None, "once is enough");
        assert_eq!(leave(&entered).unwrap().unwrap(), LIST);
        assert_eq!(leave(LIST).unwrap(), None);
        assert_eq!(entry_of(&entered).as_deref(), Some(OURS));
    }

    #[test]
    fn stays_last_and_up_to_date() {
        let entered = enter(LIST, OURS).unwrap().unwrap();
        let chained = entered.replace("},\n    { \"type\" : \"portmap\" }", "}");
        let chained = chained.replacen(OURS, &format!("{OURS}, {{\"type\":\"late\"}}"), 1);
        let again = enter(&chained, OURS).unwrap().unwrap();
        let value: Value = serde_json::from_str(&again).unwrap();
        let types: Vec<_> = value["plugins"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["ptp", "late", TYPE]);
        let newer = r#"{"type":"fairlead-cni","socket":"/t"}"#;
        let renewed = enter(&entered, newer).unwrap().unwrap();
        assert!(renewed.contains(newer) && !renewed.contains(OURS));
        assert_eq!(leave(&renewed).unwrap().unwrap(), LIST);
    }

    #[test]
    fn ours_may_stand_anywhere() {
        let first = format!("{{\"plugins\":[{OURS} , {{\"type\":\"a\"}}]}}");
        assert_eq!(leave(&first).unwrap().unwrap(), "{\"plugins\":[{\"type\":\"a\"}]}");
        let twice = format!("{{\"plugins\":[{{\"type\":\"a\"}},{OURS},{OURS}]}}");
        assert_eq!(leave(&twice).unwrap().unwrap(), "{\"plugins\":[{\"type\":\"a\"}]}");
        assert!(leave(&format!("{{\"plugins\":[{OURS}]}}")).is_err());
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            "{\"plugins\":{}}",
            "{\"plugins\":[]}",
            "{\"plugins\":[],\"plugins\":[]}",
        ] {
            assert!(enter(text, OURS).is_err(), "{text}");
        }
        assert!(
            enter("{\"plugins\":[{\"type\":\"a\"}],\"plugins\":[{\"type\":\"b\"}]}", OURS).is_err()
        );
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let conf = "\n{\"cniVersion\": \"0.3.1\", \"name\": \"n\\u0041\", \"type\": \"bridge\"}\n";
        let list = list_of(conf).unwrap();
        let value: Value = serde_json::from_str(&list).unwrap();
        assert_eq!((&value["cniVersion"], &value["name"]), (&"0.3.1".into(), &"nA".into()));
        assert_eq!(value["plugins"][0]["type"], "bridge");
        assert!(enter(&list, OURS).unwrap().is_some());
        assert!(list_of("{}").is_err() && list_of("[]").is_err());
    }
}
