//! What ships in `deploy/` and `docker-compose.yml` names only what exists: metrics and their labels, settings, images with a
//! version. Whether it runs is found out by running it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Result, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tidemark_tests::{
    repository::{read, root, tracked},
    tools::debian_program,
};

/// Labels that Prometheus adds, or that belong to the buckets of a histogram.
const LABELS_OF_PROMETHEUS: &[&str] = &["job", "instance", "le"];
/// Metrics of Prometheus itself.
const METRICS_OF_PROMETHEUS: &[&str] = &["up"];
/// Environment variables that are no settings of the broker.
const OTHER_VARIABLES: &[&str] = &["TIDEMARK_BROKERS", "TIDEMARK_LOG"];

#[test]
fn every_metric_of_alerts_and_dashboards_exists_and_has_the_labels_it_is_asked_for() {
    let known = metrics();
    let mut missing = BTreeSet::new();
    let mut named = 0;
    for (place, expression) in expressions() {
        for use_of in uses(&expression) {
            named += 1;
            let Some(labels) = known.get(base_name(&use_of.metric, &known)) else {
                missing.insert(format!("{} ({place})", use_of.metric));
                continue;
            };
            for label in use_of.labels {
                let is_there =
                    labels.contains(&label) || LABELS_OF_PROMETHEUS.contains(&label.as_str());
                if !is_there {
                    missing.insert(format!("label {label} of {} ({place})", use_of.metric));
                }
            }
        }
    }
    assert!(named > 80, "only {named} uses of metrics found");
    assert!(missing.is_empty(), "no such metrics or labels: {missing:#?}");
}

#[test]
fn prometheus_understands_its_configuration_the_alerts_and_every_query() -> Result<()> {
    let promtool = debian_program("prometheus", "promtool")?;
    let check = |what: &str, file: &Path| -> Result<()> {
        let output = Command::new(&promtool).args(["check", what]).arg(file).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", file.display());
        Ok(())
    };
    check("config", &root().join("deploy/prometheus/prometheus.yml"))?;
    check("rules", &root().join("deploy/prometheus/alerts.yml"))?;
    // As rules, since only those are checked without a server. The variables are Grafana's, and so is `label_values`.
    let queries = expressions().into_iter().map(|(_, expression)| expression);
    let queries = queries.filter(|expression| !expression.starts_with("label_values("));
    let rules: Vec<Value> = queries
        .map(|query| query.replace("$__rate_interval", "1m"))
        .zip(0..)
        .map(|(query, number)| json!({ "record": format!("query_{number}"), "expr": query }))
        .collect();
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("queries.yml");
    // JSON is YAML, too.
    let all = json!({ "groups": [{ "name": "queries", "rules": rules }] });
    fs::write(&file, all.to_string())?;
    check("rules", &file)
}

#[test]
fn every_metric_that_the_documents_mention_exists() {
    let known = metrics();
    // Filters of the log name crates.
    let crates: BTreeSet<String> = tracked("Cargo.toml")
        .iter()
        .filter_map(|path| Some(Path::new(path).parent()?.file_name()?.to_str()?.to_owned()))
        .map(|folder| format!("tidemark_{folder}"))
        .collect();
    let mentioned = words(&read("docs/operations.md"))
        .filter(|word| word.starts_with("tidemark_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect::<BTreeSet<_>>();
    let missing: Vec<_> = mentioned
        .iter()
        .filter(|word| !crates.contains(*word) && !known.contains_key(base_name(word, &known)))
        .collect();
    assert!(missing.is_empty(), "docs/operations.md: no such metrics: {missing:?}");
}

#[test]
fn every_alert_says_how_bad_it_is_what_has_happened_and_what_it_means() {
    let mut names = BTreeSet::new();
    for rule in rules() {
        let name = rule["alert"].as_str().expect("a name").to_owned();
        let text = |of: &str, key: &str| rule[of][key].as_str().unwrap_or_default().to_owned();
        assert!(["page", "ticket"].contains(&text("labels", "severity").as_str()), "{name}");
        assert!(!text("annotations", "summary").is_empty(), "{name}");
        assert!(text("annotations", "description").ends_with('.'), "{name}");
        assert!(names.insert(name.clone()), "{name} is there twice");
    }
    assert!(names.len() >= 20, "{} alerts", names.len());
}

#[test]
fn every_panel_of_the_dashboard_has_a_query_and_a_place_of_its_own() {
    let dashboard = dashboard();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        let place = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
        for column in place("x")..place("x") + place("w") {
            assert!(column < 24, "{title} leaves the page");
            for line in place("y")..place("y") + place("h") {
                assert!(taken.insert((column, line)), "{title} covers another panel");
            }
        }
        let is_row = panel["type"] == "row";
        assert_eq!(panel["targets"].as_array().is_none_or(Vec::is_empty), is_row, "{title}");
    }
}

#[test]
fn every_variable_is_a_setting() {
    let operations = read("docs/operations.md");
    let settings: BTreeSet<String> = table(&operations, "settings")
        .map(|row| format!("TIDEMARK_{}", row[0].to_ascii_uppercase()))
        .collect();
    assert!(settings.contains("TIDEMARK_NODE_ID"), "{settings:?}");
    for path in shipped() {
        let text = read(&path);
        for word in words(&text).filter(|word| word.starts_with("TIDEMARK_")) {
            let is_known = settings.contains(word) || OTHER_VARIABLES.contains(&word);
            assert!(is_known, "{path}: {word} is no setting");
        }
    }
}

#[test]
fn every_yaml_reads_and_gives_nobody_privileges() {
    let is_yaml = |path: &&String| [".yml", ".yaml"].iter().any(|end| path.ends_with(end));
    for path in shipped().iter().filter(is_yaml) {
        for document in serde_yaml_ng::Deserializer::from_str(&read(path)) {
            let value =
                Value::deserialize(document).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(!value.is_null(), "{path} has an empty document");
        }
        for banned in ["privileged:", "hostNetwork:", "hostPath:", "SYS_ADMIN", "docker.sock"] {
            assert!(!read(path).contains(banned), "{path}: {banned}");
        }
    }
}

#[test]
fn every_image_has_a_version() {
    let mut images = Vec::new();
    for path in shipped() {
        for line in read(&path).lines() {
            let line = line.trim();
            let image = line.strip_prefix("image:").or_else(|| line.strip_prefix("FROM "));
            let Some(image) = image.and_then(|rest| rest.split_whitespace().next()) else {
                continue;
            };
            // A stage of the same file, by a variable.
            if image.starts_with("${") {
                continue;
            }
            let tag = image.rsplit_once(':').map(|(_, tag)| tag);
            assert!(tag.is_some_and(|tag| tag != "latest"), "{path}: {image} has no version");
            images.push(image.to_owned());
        }
    }
    let ours: BTreeSet<_> = images.iter().filter(|image| image.starts_with("tidemark:")).collect();
    let version = concat!("tidemark:", env!("CARGO_PKG_VERSION"));
    assert_eq!(ours.into_iter().collect::<Vec<_>>(), [version], "the version of the workspace");
}

/// A metric in an expression, and the labels it is selected by.
struct Use {
    metric: String,
    labels: Vec<String>,
}

fn uses(expression: &str) -> Vec<Use> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_') {
        let word_end = |text: &str| {
            text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
        };
        let word = &rest[start..start + word_end(&rest[start..])];
        rest = &rest[start + word.len()..];
        let (selector, after) = match rest.strip_prefix('{').and_then(|it| it.split_once('}')) {
            Some((selector, after)) => (selector, after),
            None => ("", rest),
        };
        rest = after;
        let is_metric = word.starts_with("tidemark_") || word.starts_with("process_");
        if is_metric && !METRICS_OF_PROMETHEUS.contains(&word) {
            let labels = selector.split(',').filter_map(|it| it.split_once(['=', '!']));
            let labels = labels.map(|(label, _)| label.trim().to_owned()).collect();
            found.push(Use { metric: word.to_owned(), labels });
        }
    }
    found
}

/// Every query of alerts and dashboard, and where it is.
fn expressions() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for rule in rules() {
        let text = |key: &str| rule[key].as_str().expect("text").to_owned();
        found.push((format!("alert {}", text("alert")), text("expr")));
    }
    let dashboard = dashboard();
    let mut take = |place: &str, query: &Value| {
        found.push((format!("dashboard, {place}"), query.as_str().expect("text").to_owned()));
    };
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            take(panel["title"].as_str().expect("a title"), &target["expr"]);
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().expect("annotations") {
        take("annotations", &annotation["expr"]);
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        if variable["type"] == "query" {
            take("variables", &variable["query"]["query"]);
        }
    }
    found
}

fn rules() -> Vec<Value> {
    let text = read("deploy/prometheus/alerts.yml");
    let alerts: Value = serde_yaml_ng::from_str(&text).expect("alerts.yml is YAML");
    let groups = alerts["groups"].as_array().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")).cloned().collect()
}

fn dashboard() -> Value {
    let text = read("deploy/grafana/dashboards/tidemark.json");
    serde_json::from_str(&text).expect("the dashboard is JSON")
}

/// Every metric of the table in `docs/operations.md`, which the broker's own test holds equal to the code, and its labels.
fn metrics() -> BTreeMap<String, Vec<String>> {
    let operations = read("docs/operations.md");
    let labels = |cell: &str| words(cell).map(str::to_owned).collect();
    table(&operations, "metrics").map(|row| (row[0].clone(), labels(&row[2]))).collect()
}

/// The name in the table: without the ending that one series of a histogram has.
fn base_name<'a>(name: &'a str, known: &BTreeMap<String, Vec<String>>) -> &'a str {
    let endings = ["_bucket", "_sum", "_count"];
    let bases = endings.iter().filter_map(|ending| name.strip_suffix(ending));
    bases.into_iter().find(|base| known.contains_key(*base)).unwrap_or(name)
}

/// The rows of a table between its marks, as cells without code marks.
fn table<'a>(document: &'a str, name: &str) -> impl Iterator<Item = Vec<String>> + use<'a> {
    let (start, end) = (format!("<!-- {name} -->"), format!("<!-- end {name} -->"));
    let rest = document.split_once(&start).expect("the table's start is marked").1;
    let rows = rest.split_once(&end).expect("the table's end is marked").0;
    rows.lines().filter(|line| line.starts_with("| `")).map(|line| {
        line.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect()
    })
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Everything that is for running Tidemark somewhere.
fn shipped() -> Vec<String> {
    let all = tracked("");
    let shipped = all.into_iter().filter(|path| path.starts_with("deploy/"));
    shipped.chain(["docker-compose.yml".to_owned()]).collect()
}
