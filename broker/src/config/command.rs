//! The command line of `tidemarkd`, built from the list of settings so that flags and help cannot drift from it.

use std::{ffi::OsString, fs, io, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};

use super::{
    Config, ConfigError, ENVIRONMENT_CONFIG, Source, Written,
    settings::{SETTINGS, Setting},
};

/// What the operator asked for.
#[derive(Debug)]
pub struct Invocation {
    /// Print the configuration in force and exit.
    pub check_config: bool,
    /// Stop when standard input ends.
    pub stop_with_stdin: bool,
    pub config: Config,
}

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// A flag that does not exist, or `--help` and `--version`, which end the same way. Prints itself.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    #[error("cannot read the configuration file {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Invocation {
    /// Reads flags, environment and file.
    pub fn parse(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, UsageError> {
        let matches = command().try_get_matches_from(arguments)?;
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let from_environment = || {
            let variable = environment.iter().find(|(name, _)| name == ENVIRONMENT_CONFIG);
            variable.map(|(_, path)| PathBuf::from(path))
        };

        let mut written = Written::default();
        if let Some(path) = matches.get_one::<PathBuf>("config").cloned().or_else(from_environment)
        {
            match fs::read_to_string(&path) {
                Ok(content) => written.read_file(&path, &content),
                Err(source) => return Err(UsageError::File { path, source }),
            }
        }
        written.read_environment(environment);
        read_flags(&mut written, &matches);
        let config = written.resolve()?;
        Ok(Self {
            check_config: matches.get_flag("check-config"),
            stop_with_stdin: matches.get_flag("stop-with-stdin"),
            config,
        })
    }
}

fn read_flags(written: &mut Written, matches: &ArgMatches) {
    for setting in SETTINGS {
        if matches.value_source(setting.name) == Some(ValueSource::CommandLine)
            && let Some(text) = matches.get_one::<String>(setting.name)
        {
            written.set(setting, text.clone(), Source::Flag);
        }
    }
}

fn command() -> Command {
    Command::new("tidemarkd")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The Tidemark broker. Needs no arguments: it listens on 127.0.0.1:9092 and stores in ./tidemark-data.")
        .after_help(
            "Every setting can also be given in a TOML file (`listen = \"0.0.0.0:9092\"`) and in the environment \
             (TIDEMARK_LISTEN). A flag is stronger than the environment, which is stronger than the file.",
        )
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Read settings from this TOML file [env: TIDEMARK_CONFIG]"),
        )
        .arg(
            Arg::new("check-config")
                .long("check-config")
                .action(ArgAction::SetTrue)
                .help("Print every setting in force with its source, and exit: 0 when all is well, 2 when not"),
        )
        .arg(
            Arg::new("stop-with-stdin")
                .long("stop-with-stdin")
                .action(ArgAction::SetTrue)
                .help("Stop in order when standard input ends: for programs that start brokers and may be killed"),
        )
        .args(SETTINGS.iter().map(flag))
        .next_line_help(true)
}

fn flag(setting: &'static Setting) -> Arg {
    let mut facts = Vec::new();
    if !setting.default.is_empty() {
        facts.push(format!("default: {}", setting.default));
    }
    if let Some((low, high)) = setting.bounds {
        facts.push(format!("from {low} to {high}"));
    }
    facts.push(format!("env: {}", setting.environment_name()));
    Arg::new(setting.name)
        .long(setting.flag_name())
        .value_name(setting.placeholder)
        .help_heading("Settings")
        .allow_hyphen_values(true)
        .help(format!("{} [{}]", setting.doc_text(), facts.join("; ")))
}
