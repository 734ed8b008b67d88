//! Where results go: one report, printed as a table, JSON, YAML or names.
//!
//! Standard output carries the result and nothing else; notes and questions go to standard error. The JSON of a
//! report is an interface: it names its schema and version, and fields are only ever added to a version.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::exit::CliError;

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people: aligned columns.
    #[default]
    Table,
    /// For programs: one JSON object with a versioned schema.
    Json,
    /// The same object as YAML.
    Yaml,
    /// For shell loops: names only, one a line.
    Name,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    Always,
    Never,
}

/// How to print, decided once at the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub format: Format,
    pub headers: bool,
    /// Colour on standard output.
    pub color: bool,
}

/// A result of a command.
pub(crate) trait Report: Serialize {
    /// Name and version of the JSON form, `tidemark/<what>/<version>`.
    const SCHEMA: &'static str;
    /// The form for people.
    fn page(&self, page: &mut Page);
    /// The names in it, for `-o name`.
    fn names(&self) -> Vec<String>;
}

#[derive(Serialize)]
struct Envelope<'a, R> {
    schema: &'static str,
    #[serde(flatten)]
    report: &'a R,
}

impl Output {
    pub(crate) fn new(format: Format, headers: bool, color: Color) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = match color {
            Color::Auto => io::stdout().is_terminal() && !no_color,
            Color::Always => true,
            Color::Never => false,
        };
        Self { format, headers, color }
    }

    /// Prints one report to standard output.
    pub(crate) fn print<R: Report>(self, report: &R) -> Result<(), CliError> {
        print_bytes(&self.render(report)?)
    }

    pub(crate) fn render<R: Report>(self, report: &R) -> Result<Vec<u8>, CliError> {
        Ok(match self.format {
            Format::Table => {
                let mut page =
                    Page { text: String::new(), headers: self.headers, color: self.color };
                report.page(&mut page);
                page.text.into_bytes()
            }
            Format::Json => json(report)?,
            Format::Yaml => serde_yaml_ng::to_string(&Envelope { schema: R::SCHEMA, report })
                .map_err(|error| CliError::error(format!("cannot print: {error}")))?
                .into_bytes(),
            Format::Name => {
                report.names().into_iter().flat_map(|name| (name + "\n").into_bytes()).collect()
            }
        })
    }
}

/// A report as one JSON object, with a line end.
pub(crate) fn json<R: Report>(report: &R) -> Result<Vec<u8>, CliError> {
    let mut bytes = serde_json::to_vec_pretty(&Envelope { schema: R::SCHEMA, report })
        .map_err(|error| CliError::error(format!("cannot print: {error}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Writes all of `bytes` to standard output. A reader that went away is not an error.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::error(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// A line for the person at the terminal, on standard error.
pub(crate) fn note(line: impl std::fmt::Display) {
    // Nothing can be done when even standard error is gone.
    drop(writeln!(io::stderr(), "{line}"));
}

/// A table as text, for standard error: what is about to happen, before somebody is asked.
pub(crate) fn plain_table(rows: &Rows) -> String {
    let mut page = Page { text: String::new(), headers: true, color: false };
    page.table(rows);
    page.text
}

/// How a line of a table is painted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Bad,
}

/// Text under construction.
#[derive(Debug)]
pub(crate) struct Page {
    text: String,
    headers: bool,
    color: bool,
}

/// Rows under named columns. Numbers are aligned to the right.
#[derive(Debug)]
pub(crate) struct Rows {
    columns: Vec<(&'static str, CellAlignment)>,
    rows: Vec<(Vec<String>, Tone)>,
}

impl Rows {
    /// Column names; a leading `>` aligns the column to the right.
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        let columns = columns
            .iter()
            .map(|name| match name.strip_prefix('>') {
                Some(name) => (name, CellAlignment::Right),
                None => (*name, CellAlignment::Left),
            })
            .collect();
        Self { columns, rows: Vec::new() }
    }

    pub(crate) fn push(&mut self, cells: Vec<String>) {
        self.push_toned(cells, Tone::Plain);
    }

    pub(crate) fn push_toned(&mut self, cells: Vec<String>, tone: Tone) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        // A cell is one line, whatever a setting or a path contains.
        let cells = cells.into_iter().map(|cell| cell.replace(['\n', '\r'], " ")).collect();
        self.rows.push((cells, tone));
    }
}

impl Page {
    /// A line of its own.
    pub(crate) fn line(&mut self, text: &str, tone: Tone) {
        let painted = self.paint(text, tone);
        self.text.push_str(&painted);
        self.text.push('\n');
    }

    /// A title with an empty line before it, unless it is the first line.
    pub(crate) fn title(&mut self, text: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        let painted = if self.color { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() };
        self.text.push_str(&painted);
        self.text.push('\n');
    }

    /// Labels and values, one pair a line, indented.
    pub(crate) fn fields(&mut self, fields: &[(&str, String)]) {
        let width = fields.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
        for (label, value) in fields {
            let line = format!("  {label:width$}  {value}\n");
            self.text.push_str(&line);
        }
    }

    /// A table without borders, so that it can be cut with `awk`.
    pub(crate) fn table(&mut self, rows: &Rows) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if self.headers {
            table.set_header(rows.columns.iter().map(|(name, _)| *name));
        }
        for (cells, _) in &rows.rows {
            table.add_row(cells);
        }
        for (column, (_, alignment)) in table.column_iter_mut().zip(&rows.columns) {
            column.set_padding((0, 2));
            column.set_cell_alignment(*alignment);
        }
        let header_lines = usize::from(self.headers);
        for (at, line) in table.lines().enumerate() {
            let line = line.trim_end();
            let painted = if at < header_lines {
                if self.color { format!("\x1b[1m{line}\x1b[0m") } else { line.to_owned() }
            } else {
                let tone = rows.rows.get(at - header_lines).map_or(Tone::Plain, |(_, tone)| *tone);
                self.paint(line, tone)
            };
            self.text.push_str(&painted);
            self.text.push('\n');
        }
    }

    fn paint(&self, text: &str, tone: Tone) -> String {
        match tone {
            Tone::Good if self.color => format!("\x1b[32m{text}\x1b[0m"),
            Tone::Bad if self.color => format!("\x1b[31m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Pets {
        pets: Vec<(&'static str, u64)>,
    }

    impl Report for Pets {
        const SCHEMA: &'static str = "tidemark/test.pets/1";

        fn page(&self, page: &mut Page) {
            let mut rows = Rows::new(&["NAME", ">AGE"]);
            for (name, age) in &self.pets {
                rows.push_toned(vec![(*name).to_owned(), age.to_string()], Tone::Bad);
            }
            page.table(&rows);
        }

        fn names(&self) -> Vec<String> {
            self.pets.iter().map(|(name, _)| (*name).to_owned()).collect()
        }
    }

    fn rendered(format: Format, headers: bool, color: bool) -> String {
        let pets = Pets { pets: vec![("tortoise", 104), ("cat", 7)] };
        String::from_utf8(Output { format, headers, color }.render(&pets).unwrap()).unwrap()
    }

    #[test]
    fn a_table_aligns_its_columns_and_has_no_borders_or_trailing_space() {
        assert_eq!(
            rendered(Format::Table, true, false),
            "NAME      AGE\ntortoise  104\ncat         7\n"
        );
        assert_eq!(rendered(Format::Table, false, false), "tortoise  104\ncat         7\n");
    }

    #[test]
    fn colour_paints_whole_lines_and_only_when_asked() {
        let painted = rendered(Format::Table, true, true);
        assert!(
            painted.starts_with("\x1b[1mNAME      AGE\x1b[0m\n\x1b[31mtortoise"),
            "{painted:?}"
        );
    }

    #[test]
    fn json_and_yaml_name_their_schema_first() {
        let json = rendered(Format::Json, true, false);
        assert!(
            json.starts_with("{\n  \"schema\": \"tidemark/test.pets/1\",\n  \"pets\""),
            "{json}"
        );
        assert!(
            rendered(Format::Yaml, true, false).starts_with("schema: tidemark/test.pets/1\npets:")
        );
    }

    #[test]
    fn names_come_one_a_line() {
        assert_eq!(rendered(Format::Name, true, false), "tortoise\ncat\n");
    }
}
