//! Properties of the source itself, checked as ordinary tests.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::Value;
use tidemark_tests::{
    repository::{read, root, tracked},
    sim::bugs,
};

/// A crate, its folder, and whom of ours it may depend on. Anything not listed fails.
const ARROWS: &[(&str, &str, &[&str])] = &[
    ("protocol", "protocol", &[]),
    ("storage", "storage", &["protocol"]),
    ("replication", "broker/replication", &["protocol"]),
    ("coordinator", "broker/coordinator", &["protocol"]),
    ("controller", "broker/controller", &["protocol", "storage"]),
    ("client", "client", &["protocol"]),
    ("cli", "client/cli", &["client", "protocol"]),
    ("broker", "broker", &["controller", "coordinator", "protocol", "replication", "storage"]),
];
/// The crates that decide and never act.
const PURE: &[&str] = &["protocol", "broker/replication", "broker/coordinator"];
const FILE_LINES_MAX: usize = 600;
const LICENSES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "MIT",
    "MIT-0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "BSL-1.0",
    "CC0-1.0",
    "0BSD",
];
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "broker",
    "client",
    "protocol",
    "storage",
    "tests",
    "benches",
    "docs",
    "deploy",
    "docker-compose.yml",
    "rust-toolchain.toml",
];

#[test]
fn crates_depend_only_along_the_arrows() {
    for (name, folder, allowed) in
        ARROWS.iter().filter(|(_, folder, _)| root().join(folder).exists())
    {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        for section in ["\n[dependencies]", "\n[build-dependencies]"] {
            let rest = manifest.split_once(section).map_or("", |(_, rest)| rest);
            let lines = rest.split_once("\n[").map_or(rest, |(lines, _)| lines).lines();
            for ours in lines.filter_map(|line| line.strip_prefix("tidemark-")) {
                let ours = ours.split(['.', ' ', '=']).next().unwrap_or("");
                assert!(allowed.contains(&ours), "{name} must not depend on {ours}");
            }
        }
    }
}

#[test]
fn pure_crates_have_no_runtime() {
    for folder in PURE.iter().filter(|folder| root().join(folder).exists()) {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        let (manifest, _) = manifest.split_once("[dev-dependencies]").unwrap_or((&manifest, ""));
        for banned in ["tokio", "rand", "mio", "memmap2", "rustix"] {
            let named =
                manifest.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(banned));
            assert!(!named, "{folder} must not depend on {banned}");
        }
        assert!(root().join(folder).join("clippy.toml").exists(), "{folder} bans clocks and files");
    }
}

#[test]
fn files_are_short_and_say_what_they_are() {
    for path in tracked(".rs") {
        let text = read(&path);
        let line_count = text.lines().count();
        assert!(line_count <= FILE_LINES_MAX, "{path}: {line_count} lines, split it by role");
        let opens = text.starts_with("//!") || text.starts_with("#![no_main]\n//!");
        assert!(opens, "{path}: start with a `//!` line saying what it is for");
        for leftover in [concat!("FIX", "ME"), concat!("X", "XX"), concat!("Place", "holder.")] {
            assert!(!text.contains(leftover), "{path}: resolve {leftover} before merging");
        }
    }
}

#[test]
fn unsafe_stays_in_the_mapped_memory_files() {
    let allowed = ["storage/src/disk/", "benches/src/floor.rs"];
    for path in tracked(".rs").iter().filter(|path| !path.starts_with("tests/")) {
        let has = read(path).contains(concat!("unsafe", " {"));
        assert!(!has || allowed.iter().any(|folder| path.starts_with(folder)), "unsafe in {path}");
    }
}

#[test]
fn the_top_level_holds_what_it_should_and_nothing_else() {
    for path in tracked("") {
        let first = path.split('/').next().unwrap_or("");
        assert!(
            first.starts_with('.') || TOP_LEVEL.contains(&first),
            "{first} does not belong here"
        );
    }
}

#[test]
fn documents_name_files_that_exist() {
    // Design documents may name files that do not exist yet, or no longer.
    for document in tracked(".md").into_iter().filter(|path| !path.starts_with("docs/rfcs/")) {
        for token in read(&document).split('`').filter(|token| names_a_file(token)) {
            assert!(root().join(token).exists(), "{document}: no such file {token}");
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in tracked(".md") {
        let folder = root().join(&document).parent().map(Path::to_path_buf).expect("in a folder");
        for target in read(&document).split("](").skip(1).filter_map(|rest| rest.split(')').next())
        {
            let path = target.split('#').next().unwrap_or("");
            if path.is_empty() || target.contains("://") {
                continue;
            }
            assert!(folder.join(path).exists(), "{document}: dead link {target}");
        }
    }
}

#[test]
fn every_shared_dependency_is_pinned_used_and_has_a_reason() {
    let manifest = read("Cargo.toml");
    let section = manifest.split_once("[workspace.dependencies]").expect("present").1;
    let section = section.split_once("\n[").expect("more sections follow").0;
    let manifests: Vec<String> = tracked("Cargo.toml").iter().map(|path| read(path)).collect();
    for line in section.lines().filter(|line| !line.starts_with('#') && line.contains('=')) {
        let name = line.split([' ', '=']).next().expect("split yields at least one");
        let used = format!("\n{name}.workspace");
        let inline = format!("\n{name} = {{ workspace = true");
        let is_used = manifests.iter().any(|text| text.contains(&used) || text.contains(&inline));
        assert!(is_used, "{name} is in the table and used nowhere");
        if !line.contains("path =") {
            assert!(line.contains(" # "), "{name}: say why it is here");
            assert!(!line.contains('*'), "{name}: pin a version");
        }
    }
}

/// `raft` brings `protobuf` 2.28 along, which can be made to recurse without end by what it parses (RUSTSEC-2024-0437).
/// So nothing is parsed with it: messages and entries have our own encodings.
#[test]
fn nothing_of_ours_parses_protobuf() {
    for path in tracked("Cargo.toml") {
        assert!(!read(&path).contains("protobuf ="), "{path} must not depend on protobuf");
    }
    let parsing = [concat!("parse_from", "_bytes"), concat!("merge_from", "_bytes")];
    for path in tracked(".rs").iter().filter(|path| !path.starts_with("tests/")) {
        let text = read(path);
        assert!(!parsing.iter().any(|name| text.contains(name)), "{path} parses protobuf");
    }
}

/// What `cargo deny` checks of licences, sources and bans, without installing it.
#[test]
fn the_dependency_tree_is_one_we_may_ship() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    for package in metadata["packages"].as_array().expect("a list of packages") {
        let name = package["name"].as_str().expect("packages have names");
        let Some(source) = package["source"].as_str() else { continue };
        assert!(
            source.starts_with("registry+https://github.com/rust-lang/crates.io-index"),
            "{name}: {source}"
        );
        assert!(!["openssl-sys", "native-tls"].contains(&name), "{name} is banned");
        let license = package["license"].as_str().unwrap_or("");
        let alternatives = license.split(" OR ").flat_map(|part| part.split('/'));
        let is_allowed = |term: &str| {
            term.split(" AND ").all(|one| LICENSES.contains(&one.trim_matches(['(', ')', ' '])))
        };
        assert!({ alternatives }.any(is_allowed), "{name}: licence {license:?}");
    }
}

/// Every bug that can be put back is in the tables, and the simulator hunts those that it runs.
#[test]
fn bugs_that_can_be_put_back_are_documented() {
    let asks = concat!("is_put_back", "(\"");
    let names = |text: &str, open: &str, close: char| {
        let parts = text.split(open).skip(1);
        let names = parts.filter_map(|part| Some(part.split_once(close)?.0.to_owned()));
        names.collect::<BTreeSet<String>>()
    };
    let asked: BTreeSet<_> =
        tracked(".rs").iter().flat_map(|path| names(&read(path), asks, '"')).collect();
    let document = read("docs/testing.md");
    let section = document.split("\n## ").find(|it| it.starts_with("Bugs that can be put back"));
    let section = section.expect("there is a section on them");
    assert_eq!(names(section, "\n| `", '`'), asked);
    let (simulated, _) = section.split_once("\nOf coordinators").expect("they come last");
    let hunted: BTreeSet<_> = bugs::ALL.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names(simulated, "\n| `", '`'), hunted);
}

fn names_a_file(token: &str) -> bool {
    let is_file = [".rs", ".md", ".toml", ".py", ".yml"].iter().any(|end| token.ends_with(end));
    is_file
        && token.contains('/')
        && !token.contains(['*', '<', ' ', '\n', '$', '~'])
        && !token.starts_with(['/', '.'])
}
