//! Where in a document something is: `spec.http[0].match[1].headers[end-user].exact`.

use std::fmt;

/// A path as a chain on the stack: nothing is allocated until a problem has to be told.
#[derive(Clone, Copy)]
pub(crate) enum Path<'p> {
    /// The document.
    Root,
    /// A field of an object.
    Field(&'p Path<'p>, &'p str),
    /// An item of a list.
    Index(&'p Path<'p>, usize),
    /// An entry of a map whose keys people choose.
    Key(&'p Path<'p>, &'p str),
}

/// One step of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step<'p> {
    /// Into a field or map entry.
    Name(&'p str),
    /// Into a list.
    Index(usize),
}

impl<'p> Path<'p> {
    /// The field `name` below.
    pub(crate) fn field(&'p self, name: &'p str) -> Path<'p> {
        Path::Field(self, name)
    }

    /// The item `index` below.
    pub(crate) fn index(&'p self, index: usize) -> Path<'p> {
        Path::Index(self, index)
    }

    /// The map entry `key` below.
    pub(crate) fn key(&'p self, key: &'p str) -> Path<'p> {
        Path::Key(self, key)
    }

    /// The steps from the document down.
    pub(crate) fn steps(&self) -> Vec<Step<'p>> {
        let mut steps = Vec::new();
        let mut here = *self;
        loop {
            here = match here {
                Path::Root => break,
                Path::Field(parent, name) | Path::Key(parent, name) => {
                    steps.push(Step::Name(name));
                    *parent
                }
                Path::Index(parent, index) => {
                    steps.push(Step::Index(index));
                    *parent
                }
            };
        }
        steps.reverse();
        steps
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Path::Key(parent, key) => write!(f, "{parent}[{key}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_steps() {
        let (root, http);
        root = Path::Root;
        let spec = root.field("spec");
        http = spec.field("http");
        let first = http.index(0);
        let headers = first.field("headers");
        let key = headers.key("end-user");
        assert_eq!(key.to_string(), "spec.http[0].headers[end-user]");
        assert_eq!(
            key.steps(),
            [
                Step::Name("spec"),
                Step::Name("http"),
                Step::Index(0),
                Step::Name("headers"),
                Step::Name("end-user")
            ]
        );
    }
}
