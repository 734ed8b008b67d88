//! The broker's configuration: from what was written to what the program runs with.
//!
//! Two steps. [`Written`] collects texts from the file, the environment and the flags, without judging them.
//! [`Written::resolve`] turns them into one [`Config`] or into every problem at once. Sources from weak to
//! strong: default, file, environment, flag. Nothing here is global: parts of the broker get values.

mod command;
mod file;
pub mod settings;
#[cfg(test)]
mod tests;
pub mod value;

use std::{
    collections::BTreeMap,
    fmt,
    ops::Deref,
    path::{Path, PathBuf},
};

use tidemark_protocol::messages::SettingValue;

pub use self::command::{Invocation, UsageError};
use self::{
    settings::{SETTINGS, Setting, Values},
    value::Kind,
};

/// Prefix of every environment variable that is read.
pub const ENVIRONMENT_PREFIX: &str = "TIDEMARK_";
/// Environment variables that are not settings: the path of the file, and log filters.
pub const ENVIRONMENT_CONFIG: &str = "TIDEMARK_CONFIG";
pub const ENVIRONMENT_LOG: &str = "TIDEMARK_LOG";
/// A variable of the command line, which an operator may well have set where the broker starts.
const ENVIRONMENT_CLIENT: &str = "TIDEMARK_BROKERS";
const OTHER_VARIABLES: [&str; 3] = [ENVIRONMENT_CONFIG, ENVIRONMENT_LOG, ENVIRONMENT_CLIENT];
/// How unlike a known name a text may be to be taken for a slip of the hand (Jaro-Winkler, 1 is equal).
const SIMILARITY_MIN: f64 = 0.8;

/// Shows a number of bytes as settings are written: `64MiB`.
pub fn render_bytes(bytes: u64) -> String {
    value::Bytes::render(&bytes)
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    File { path: PathBuf, line: usize },
    Environment,
    Flag,
}

impl Source {
    /// `default`, `file`, `environment` or `flag`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File { .. } => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        }
    }

    fn place(&self, setting: &Setting) -> String {
        match self {
            Self::Default => "by default".to_owned(),
            Self::File { path, line } => format!("in {}, line {line}", path.display()),
            Self::Environment => format!("in environment variable {}", setting.environment_name()),
            Self::Flag => format!("in flag --{}", setting.flag_name()),
        }
    }
}

/// Everything that is wrong with a configuration, one sentence each.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.problems.join("\n"))
    }
}

/// What was written, by name, with its source. Later sources replace earlier ones.
#[derive(Debug, Default)]
pub struct Written {
    texts: BTreeMap<&'static str, (String, Source)>,
    problems: Vec<String>,
    warnings: Vec<String>,
}

impl Written {
    /// Takes in a file's content. An unknown key is a problem: a setting that is silently not in force is
    /// worse than a broker that does not start.
    pub fn read_file(&mut self, path: &Path, content: &str) {
        file::read(self, path, content);
    }

    /// Takes in environment variables. An unknown one is only a warning: the environment is shared with others.
    pub fn read_environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (variable, text) in variables {
            let Some(rest) = variable.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            let name = rest.to_ascii_lowercase();
            if let Some(setting) = find(&name) {
                self.set(setting, text, Source::Environment);
            } else if !OTHER_VARIABLES.contains(&variable.as_str()) {
                let hint = nearest(&name)
                    .map(|setting| format!("; did you mean {}?", setting.environment_name()));
                let hint = hint.unwrap_or_default();
                self.warnings
                    .push(format!("environment variable {variable} is not a setting{hint}"));
            }
        }
    }

    fn set(&mut self, setting: &'static Setting, text: String, source: Source) {
        self.texts.insert(setting.name, (text, source));
    }

    /// Checks everything and gives the configuration, or every problem found.
    pub fn resolve(mut self) -> Result<Config, ConfigError> {
        let texts = &self.texts;
        let text_of = |name| match texts.get(name) {
            Some((text, _)) => text.as_str(),
            None => known(name).default,
        };
        let mut complaints = Vec::new();
        let values = Values::resolve(text_of, |name, why| {
            let source = texts.get(name).map_or(&Source::Default, |(_, source)| source);
            complaints.push(format!("`{name}` {why} ({})", source.place(known(name))));
        });
        self.problems.append(&mut complaints);
        if let Some(values) = &values {
            check_together(values, &mut self.problems);
        }
        match values {
            Some(values) if self.problems.is_empty() => {
                let sources =
                    self.texts.into_iter().map(|(name, (_, source))| (name, source)).collect();
                Ok(Config { values, sources, warnings: self.warnings })
            }
            _ => Err(ConfigError { problems: self.problems }),
        }
    }
}

/// Rules that need more than one setting.
fn check_together(values: &Values, problems: &mut Vec<String>) {
    if values.connection_memory_bytes < values.max_frame_bytes {
        problems.push(format!(
            "`connection_memory_bytes` ({}) must be at least `max_frame_bytes` ({}), or the largest request \
             could never be read",
            render_bytes(values.connection_memory_bytes),
            render_bytes(values.max_frame_bytes),
        ));
    }
    if values.group_heartbeat_interval * 2 > values.group_session_timeout {
        problems.push(format!(
            "`group_heartbeat_interval` ({:?}) must be at most half of `group_session_timeout` ({:?}), or one heartbeat that is \
             late puts a member out",
            values.group_heartbeat_interval, values.group_session_timeout,
        ));
    }
    if values.listen == values.http_listen && !values.listen.ends_with(":0") {
        problems.push(format!("`listen` and `http_listen` are both {}", values.listen));
    }
}

/// The configuration in force. Dereferences to its [`Values`].
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    values: Values,
    sources: BTreeMap<&'static str, Source>,
    /// Things to tell the operator that do not stop the broker.
    pub warnings: Vec<String>,
}

impl Default for Config {
    /// Every setting at its default.
    fn default() -> Self {
        Written::default().resolve().expect("the defaults are in bounds, which is tested")
    }
}

impl Deref for Config {
    type Target = Values;

    fn deref(&self) -> &Values {
        &self.values
    }
}

impl Config {
    /// The configuration with these settings and defaults for the rest, as if given by flags.
    pub fn with(settings: &[(&str, &str)]) -> Result<Self, ConfigError> {
        let mut written = Written::default();
        for (name, text) in settings {
            match find(name) {
                Some(setting) => written.set(setting, (*text).to_owned(), Source::Flag),
                None => written.problems.push(unknown(name)),
            }
        }
        written.resolve()
    }

    /// Every setting with its value, default, source and documentation.
    pub fn settings(&self) -> Vec<SettingValue> {
        let values = self.values.render();
        let describe = |(setting, value): (&Setting, String)| SettingValue {
            name: setting.name.to_owned(),
            value,
            default: setting.default.to_owned(),
            source: self.sources.get(setting.name).unwrap_or(&Source::Default).name().to_owned(),
            doc: setting.doc_text(),
        };
        SETTINGS.iter().zip(values).map(describe).collect()
    }

    /// The configuration as a file that would give it again, with the source of each value beside it.
    pub fn to_toml(&self) -> String {
        let lines = self.settings().into_iter().map(|setting| {
            let quoted = toml::Value::String(setting.value).to_string();
            let source = match self.sources.get(setting.name.as_str()) {
                Some(Source::File { path, line }) => format!("file {}:{line}", path.display()),
                _ => setting.source,
            };
            let assignment = format!("{} = {quoted}", setting.name);
            format!(
                "{assignment:<48} # {source}
"
            )
        });
        lines.collect()
    }
}

fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

fn known(name: &str) -> &'static Setting {
    find(name).expect("the name comes from the list of settings")
}

fn nearest(name: &str) -> Option<&'static Setting> {
    let scored = SETTINGS.iter().map(|setting| (strsim::jaro_winkler(name, setting.name), setting));
    let best = scored.max_by(|(left, _), (right, _)| left.total_cmp(right));
    best.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN).map(|(_, setting)| setting)
}

fn unknown(name: &str) -> String {
    let normal = name.replace('-', "_").to_ascii_lowercase();
    match nearest(&normal) {
        Some(setting) => format!("unknown setting `{name}`; did you mean `{}`?", setting.name),
        None => format!("unknown setting `{name}`; `tidemarkd --help` lists all of them"),
    }
}
