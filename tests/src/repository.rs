//! The repository that the tests are part of, for those that judge its files. It reads, and writes nothing.

use std::{fs, path::PathBuf, process::Command};

/// Its folder.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of it, as text.
///
/// # Panics
/// When it is not there or no text: then the test that wants it fails.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Paths of the files that belong to it, committed or not, whose names end like this.
///
/// # Panics
/// Without git.
pub fn tracked(suffix: &str) -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard", "--deduplicate"])
        .current_dir(root())
        .output()
        .expect("git is installed");
    let paths = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let exists = |path: &&str| root().join(path).exists();
    paths.lines().filter(|path| path.ends_with(suffix)).filter(exists).map(String::from).collect()
}
