//! YAML files to [`Node`] trees.
//!
//! The parser is `saphyr-parser`: pure Rust without unsafe, YAML 1.2 by its test suite,
//! maintained (0.3 in 2026), about 50 MB/s here, and with positions in its events, which is what
//! lets every problem name a line. `serde_yaml` is archived, its forks keep its C-shaped parser
//! and lose positions and bounds on the way to serde; `serde-saphyr` deserializes well, but
//! stops at the first error and cannot tell the fields that it passed over.
//!
//! Here are the bounds: depth, nodes, and what aliases may add ("billion laughs").

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::tree::{Entries, MAX_DEPTH, Node, Value};

/// Most nodes of a file, as a bound of memory (about 60 bytes each).
const MAX_NODES: usize = 4_000_000;
/// Most nodes that the aliases of a document may add.
const MAX_ALIAS_NODES: usize = 20_000;
/// Most bytes of text that the aliases of a document may add.
const MAX_ALIAS_BYTES: usize = 4 << 20;

/// Why a file or a document of it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// Line, counted from 1; 0 where it is not known.
    pub(crate) line: u32,
    /// What is wrong.
    pub(crate) message: String,
    /// What is allowed.
    pub(crate) allowed: Option<String>,
    /// Whether the parser can go on with the next document.
    pub(crate) fatal: bool,
}

impl SyntaxError {
    fn fatal(line: u32, message: impl Into<String>, allowed: Option<&str>) -> Self {
        let allowed = allowed.map(str::to_owned);
        Self { line, message: message.into(), allowed, fatal: true }
    }
}

/// The documents of a YAML text, one after the other.
pub(crate) struct Documents<'a> {
    parser: Parser<'a, StrInput<'a>>,
    nodes: usize,
    done: bool,
}

/// A collection under construction.
enum Open<'a> {
    Sequence { items: Vec<Node<'a>> },
    Mapping { entries: Entries<'a>, key: Option<Cow<'a, str>>, merged: Vec<Node<'a>> },
}

struct Frame<'a> {
    open: Open<'a>,
    line: u32,
    anchor: usize,
}

/// A node that an alias may repeat, and what that costs.
struct Anchored<'a> {
    node: Node<'a>,
    nodes: usize,
    bytes: usize,
}

impl<'a> Documents<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self { parser: Parser::new_from_str(text), nodes: 0, done: false }
    }

    fn event(&mut self) -> Result<Option<(Event<'a>, u32)>, SyntaxError> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok((event, span))) => Ok(Some((event, line(span.start.line())))),
            Some(Err(error)) => Err(scan_error(&error)),
        }
    }

    /// Reads up to the end of the current document.
    fn document(&mut self) -> Result<Option<Node<'a>>, SyntaxError> {
        let mut state = Builder::default();
        // A fault of this document alone (a duplicate key) must not hide the documents after it:
        // it is kept until the document's end.
        let mut fault: Option<SyntaxError> = None;
        let mut take = |result: Result<(), SyntaxError>| match result {
            Err(error) if error.fatal => Err(error),
            Err(error) => {
                fault.get_or_insert(error);
                Ok(())
            }
            Ok(()) => Ok(()),
        };
        loop {
            let Some((event, line)) = self.event()? else {
                self.done = true;
                return match fault {
                    Some(error) => Err(error),
                    None => Ok(state.root),
                };
            };
            match event {
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => {}
                Event::StreamEnd => self.done = true,
                Event::DocumentEnd => {
                    return match fault {
                        Some(error) => Err(error),
                        None => Ok(state.root),
                    };
                }
                Event::Scalar(text, style, anchor, tag) => {
                    self.count(line)?;
                    let plain = take_tag(style, tag.as_deref(), line)?;
                    let node = Node { line, value: Value::Scalar { text, plain } };
                    take(state.add(node, anchor))?;
                }
                Event::SequenceStart(anchor, _) => {
                    self.count(line)?;
                    state.open(Open::Sequence { items: Vec::new() }, line, anchor)?;
                }
                Event::MappingStart(anchor, _) => {
                    self.count(line)?;
                    let entries = Entries::default();
                    let open = Open::Mapping { entries, key: None, merged: Vec::new() };
                    state.open(open, line, anchor)?;
                }
                Event::SequenceEnd | Event::MappingEnd => take(state.close())?,
                Event::Alias(anchor) => take(state.alias(anchor, line))?,
            }
        }
    }

    fn count(&mut self, line: u32) -> Result<(), SyntaxError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let allowed = format!("at most {MAX_NODES} values in a file; split it");
            return Err(SyntaxError::fatal(line, "the file is too large", Some(&allowed)));
        }
        Ok(())
    }
}

impl<'a> Iterator for Documents<'a> {
    type Item = Result<Node<'a>, SyntaxError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            match self.document() {
                // An empty document (`---` at the end, comments only) is nothing.
                Ok(None) => {}
                Ok(Some(node)) if node.is_null() => {}
                Ok(Some(node)) => return Some(Ok(node)),
                Err(error) => {
                    self.done |= error.fatal;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

#[derive(Default)]
struct Builder<'a> {
    root: Option<Node<'a>>,
    stack: Vec<Frame<'a>>,
    anchors: HashMap<usize, Anchored<'a>>,
    alias_nodes: usize,
    alias_bytes: usize,
}

impl<'a> Builder<'a> {
    fn open(&mut self, open: Open<'a>, line: u32, anchor: usize) -> Result<(), SyntaxError> {
        if self.stack.len() >= MAX_DEPTH {
            let allowed = format!("at most {MAX_DEPTH} levels");
            return Err(SyntaxError::fatal(line, "nested too deep", Some(&allowed)));
        }
        self.stack.push(Frame { open, line, anchor });
        Ok(())
    }

    fn close(&mut self) -> Result<(), SyntaxError> {
        let Some(Frame { open, line, anchor }) = self.stack.pop() else { return Ok(()) };
        let mut result = Ok(());
        let value = match open {
            Open::Sequence { items } => Value::Sequence(items),
            Open::Mapping { mut entries, merged, .. } => {
                result = merge(&mut entries, merged, line);
                Value::Mapping(entries)
            }
        };
        result.and(self.add(Node { line, value }, anchor))
    }

    fn alias(&mut self, anchor: usize, line: u32) -> Result<(), SyntaxError> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Err(SyntaxError::fatal(
                line,
                "the alias names a value that is not complete",
                None,
            ));
        };
        self.alias_nodes += anchored.nodes;
        self.alias_bytes += anchored.bytes;
        if self.alias_nodes > MAX_ALIAS_NODES || self.alias_bytes > MAX_ALIAS_BYTES {
            let allowed = format!(
                "at most {MAX_ALIAS_NODES} values and {MAX_ALIAS_BYTES} bytes in a document"
            );
            return Err(SyntaxError::fatal(line, "aliases expand to too much", Some(&allowed)));
        }
        let node = anchored.node.clone();
        self.add(node, 0)
    }

    fn add(&mut self, node: Node<'a>, anchor: usize) -> Result<(), SyntaxError> {
        if anchor != 0 {
            let (mut nodes, mut bytes) = (0, 0);
            cost(&node, &mut nodes, &mut bytes);
            // What is anchored is copied too, and counts as much as what an alias adds.
            self.alias_nodes += nodes;
            self.alias_bytes += bytes;
            self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, bytes });
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut frame.open {
            Open::Sequence { items } => items.push(node),
            Open::Mapping { entries, key, merged } => match key.take() {
                None => match node.value {
                    Value::Scalar { text, .. } => *key = Some(text),
                    Value::Sequence(_) | Value::Mapping(_) => {
                        // A stand-in keeps keys and values in step.
                        *key = Some(Cow::Borrowed(""));
                        return Err(SyntaxError {
                            fatal: false,
                            ..SyntaxError::fatal(node.line, "a key has to be plain text", None)
                        });
                    }
                },
                Some(name) if name == "<<" => merged.push(node),
                Some(name) => {
                    let line = node.line;
                    if !entries.insert(name.clone(), node) {
                        let message = format!("the key {name:?} is there twice");
                        let allowed = Some("each key once");
                        return Err(SyntaxError {
                            fatal: false,
                            ..SyntaxError::fatal(line, message, allowed)
                        });
                    }
                }
            },
        }
        Ok(())
    }
}

/// Adds what `<<` names, where the mapping does not say otherwise (YAML 1.1 merge key, which
/// kubectl takes).
fn merge<'a>(
    entries: &mut Entries<'a>,
    merged: Vec<Node<'a>>,
    line: u32,
) -> Result<(), SyntaxError> {
    let mut add = |node: Node<'a>| match node.value {
        Value::Mapping(more) => {
            for (key, value) in more {
                entries.insert(key, value);
            }
            Ok(())
        }
        Value::Scalar { .. } | Value::Sequence(_) => Err(SyntaxError {
            fatal: false,
            ..SyntaxError::fatal(line, "<< has to name an object or a list of objects", None)
        }),
    };
    for node in merged {
        match node.value {
            Value::Sequence(items) => items.into_iter().try_for_each(&mut add)?,
            value => add(Node { line: node.line, value })?,
        }
    }
    Ok(())
}

fn cost(node: &Node<'_>, nodes: &mut usize, bytes: &mut usize) {
    *nodes += 1;
    match &node.value {
        Value::Scalar { text, .. } => *bytes += text.len(),
        Value::Sequence(items) => items.iter().for_each(|item| cost(item, nodes, bytes)),
        Value::Mapping(entries) => {
            for (key, value) in entries.iter() {
                *bytes += key.len();
                cost(value, nodes, bytes);
            }
        }
    }
}

/// Whether a scalar may mean something other than text.
fn take_tag(style: ScalarStyle, tag: Option<&Tag>, line: u32) -> Result<bool, SyntaxError> {
    let plain = style == ScalarStyle::Plain;
    let Some(tag) = tag else { return Ok(plain) };
    if tag.handle.is_empty() && tag.suffix == "!" {
        return Ok(false);
    }
    match (tag.is_yaml_core_schema() || tag.handle == "!!", tag.suffix.as_str()) {
        (true, "str") => Ok(false),
        (true, "int" | "float" | "bool" | "null") => Ok(plain),
        _ => Err(SyntaxError::fatal(line, format!("the tag {tag} is not known"), Some("no tag"))),
    }
}

fn line(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

fn scan_error(error: &ScanError) -> SyntaxError {
    let message = format!("not valid YAML: {} (column {})", error.info(), error.marker().col() + 1);
    SyntaxError::fatal(line(error.marker().line()), message, None)
}
