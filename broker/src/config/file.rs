//! The TOML file: one flat table of settings. Numbers and booleans are taken as the text they would be in a
//! flag, so `max_connections = 500` and `max_connections = "500"` are the same.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::{Source, Written, find, unknown};

/// Adds the file's settings and problems to `written`. A file that is not TOML is one problem.
pub(super) fn read(written: &mut Written, path: &Path, content: &str) {
    let shown = path.display();
    let table = match DeTable::parse(content) {
        Ok(table) => table,
        Err(error) => {
            let line = error.span().map_or(1, |span| line_at(content, span.start));
            written.problems.push(format!("{shown}, line {line}: {}", error.message()));
            return;
        }
    };
    for (key, value) in table.get_ref() {
        let line = line_at(content, key.span().start);
        let name: &str = key.get_ref();
        let Some(setting) = find(name) else {
            written.problems.push(format!("{shown}, line {line}: {}", unknown(name)));
            continue;
        };
        match scalar(value.get_ref()) {
            Some(text) => {
                let source = Source::File { path: path.to_owned(), line };
                written.set(setting, text, source);
            }
            None => written.problems.push(format!(
                "{shown}, line {line}: `{name}` takes one text or number; this is of type {}",
                value.get_ref().type_str()
            )),
        }
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .map(|number| number.to_string()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn line_at(content: &str, position: usize) -> usize {
    content.bytes().take(position).filter(|byte| *byte == b'\n').count() + 1
}
