//! `docs/operations.md` says what the broker has: the same settings, topic settings and metrics, word for word.
//!
//! The tables are written by `UPDATE_DOCS=1 cargo test -p tidemark-broker --test operations`.

#![expect(clippy::unwrap_used, reason = "a test that cannot read what it compares has failed")]

use std::{env, fs, path::Path};

use tidemark_broker::{config::settings, health::Reason, metrics::table};

#[test]
fn the_settings_table_is_the_list_of_settings() {
    let rows = settings::SETTINGS.iter().map(|setting| {
        let default = match setting.default {
            "" => "derived".to_owned(),
            default => format!("`{default}`"),
        };
        let bounds =
            setting.bounds.map(|(low, high)| format!("{low} to {high}")).unwrap_or_default();
        format!("| `{}` | {default} | {bounds} | {} |", setting.name, setting.doc_text())
    });
    assert_documented(
        "settings",
        "| Setting | Default | Bounds | Meaning |\n|---|---|---|---|",
        rows,
    );
}

#[test]
fn the_topic_settings_table_is_the_controllers() {
    let rows = tidemark_controller::settings::SETTINGS
        .iter()
        .map(|setting| format!("| `{}` | `{}` | {} |", setting.name, setting.default, setting.doc));
    assert_documented("topic-settings", "| Setting | Default | Meaning |\n|---|---|---|", rows);
}

#[test]
fn the_metrics_table_is_the_list_of_metrics() {
    let rows = table::METRICS.iter().map(|metric| {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = metric.kind.name();
        format!("| `{}` | {kind} | {} | {} |", metric.name, labels.join(", "), metric.help)
    });
    assert_documented("metrics", "| Metric | Kind | Labels | Meaning |\n|---|---|---|---|", rows);
}

#[test]
fn every_health_reason_is_explained() {
    let document = fs::read_to_string(document()).unwrap();
    for reason in Reason::ALL {
        assert!(
            document.contains(&format!("| `{}` |", reason.name())),
            "{} is missing",
            reason.name()
        );
    }
}

fn document() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md")
}

/// The document has exactly this table between `<!-- name -->` and `<!-- end name -->`.
fn assert_documented(name: &str, head: &str, rows: impl Iterator<Item = String>) {
    let expected = format!("\n{head}\n{}\n", rows.collect::<Vec<_>>().join("\n"));
    let document = fs::read_to_string(document()).unwrap();
    let (start, end) = (format!("<!-- {name} -->"), format!("<!-- end {name} -->"));
    let (before, rest) = document.split_once(&start).expect("the table's start is marked");
    let (found, after) = rest.split_once(&end).expect("the table's end is marked");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(self::document(), format!("{before}{start}{expected}{end}{after}")).unwrap();
        return;
    }
    for line in expected.lines() {
        assert!(found.lines().any(|known| known == line), "docs/operations.md lacks: {line}");
    }
    for line in found.lines() {
        assert!(
            expected.lines().any(|known| known == line),
            "docs/operations.md has too much: {line}"
        );
    }
    assert_eq!(found, expected, "the {name} table has its rows in another order");
}
