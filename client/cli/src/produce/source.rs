//! Files and standard input, read on a thread of their own into a bounded queue.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use tokio::sync::mpsc;

use crate::{
    exit::{CliError, Exit},
    input::{self, Chunk, InputError, InputOptions},
};

/// Chunks read ahead of the sender.
const CHUNKS_QUEUED_MAX: usize = 16;

/// What to read, known to exist.
#[derive(Debug)]
pub(super) struct Source {
    /// Empty for standard input.
    files: Vec<PathBuf>,
    /// `None` when any of it is a pipe or a terminal.
    pub(super) total_bytes: Option<u64>,
}

impl Source {
    /// Checks that every file can be opened, before anything is sent.
    pub(super) fn open(files: &[PathBuf]) -> Result<Self, CliError> {
        let mut total_bytes = Some(0);
        let default = [PathBuf::from("-")];
        let files = if files.is_empty() { &default[..] } else { files };
        for path in files {
            let metadata = if is_stdin(path) {
                std::fs::metadata("/dev/stdin").ok()
            } else {
                let opened = File::open(path).and_then(|file| file.metadata());
                Some(opened.map_err(|error| unreadable(path, &error))?)
            };
            if metadata.as_ref().is_some_and(std::fs::Metadata::is_dir) {
                return Err(CliError::usage(format!("{} is a directory", path.display())));
            }
            let bytes = metadata.filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
            total_bytes = total_bytes.zip(bytes).map(|(total, bytes)| total + bytes);
        }
        Ok(Self { files: files.to_vec(), total_bytes })
    }

    /// Starts reading. The queue ends with the input, or with the error that ended it.
    pub(super) fn start(self, options: InputOptions) -> mpsc::Receiver<Result<Chunk, CliError>> {
        let (sender, receiver) = mpsc::channel(CHUNKS_QUEUED_MAX);
        std::thread::spawn(move || {
            for path in &self.files {
                if let Err(error) = read(path, &options, &sender) {
                    // Nobody listens when the sender stopped first.
                    let _gone = sender.blocking_send(Err(error));
                    return;
                }
            }
        });
        receiver
    }
}

fn read(
    path: &Path,
    options: &InputOptions,
    sender: &mpsc::Sender<Result<Chunk, CliError>>,
) -> Result<(), CliError> {
    let reader: Box<dyn Read> = if is_stdin(path) {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(path).map_err(|error| unreadable(path, &error))?)
    };
    match input::read_records(reader, options, |chunk| sender.blocking_send(Ok(chunk)).is_ok()) {
        Ok(()) | Err(InputError::Stopped) => Ok(()),
        Err(error) => Err(bad_input(path, &error)),
    }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

fn unreadable(path: &Path, error: &io::Error) -> CliError {
    let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Error };
    CliError::new(exit, format!("cannot read {}: {error}", path.display()))
}

fn bad_input(path: &Path, error: &InputError) -> CliError {
    let place =
        if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() };
    let report = CliError::error(format!("{place}: {error}"));
    match error {
        InputError::NoKey { .. } => {
            report.with_hint("every record needs the delimiter of -K; records before it were sent")
        }
        InputError::TooLarge { .. } => {
            report.with_hint("is this the right delimiter? see -D, -0 and --whole")
        }
        InputError::Json { .. } => {
            report.with_hint("each line is one object like {\"key\":\"k\",\"value\":\"v\"}; without --json lines are values")
        }
        InputError::Io(_) | InputError::Stopped => report,
    }
}
