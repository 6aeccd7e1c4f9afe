//! The dashboard and the alerts in `deploy/` query only metrics that the service has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::control::get;
use crate::support::setup::Setup;
use crate::support::world::directories;

/// Every metric of a running service, with the names of its labels.
type Offered = BTreeMap<String, BTreeSet<String>>;

/// Made by Prometheus itself: one of each target, and the labels of every series.
const BY_PROMETHEUS: [&str; 1] = ["up"];
const LABELS_BY_PROMETHEUS: [&str; 2] = ["job", "instance"];
/// Words of the query language that may take the place of a metric.
const WORDS: [&str; 11] =
    ["and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool"];

#[test]
fn every_query_of_the_dashboard_names_a_metric_that_exists() {
    let text = fs::read_to_string(deploy("grafana-dashboard.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("the dashboard is JSON");
    let mut queries = Vec::new();
    collect(&dashboard, &mut queries);
    assert!(queries.len() > 30, "the dashboard has lost its queries: {queries:?}");
    assert_answered(&queries);
    let shown: BTreeSet<String> = queries.iter().flat_map(|query| asked(query)).map(|(metric, _)| metric).collect();
    let unseen: Vec<String> = offered().into_keys().filter(|metric| !is_shown(metric, &shown)).collect();
    assert!(unseen.is_empty(), "metrics that no panel shows: {unseen:?}");
}

/// Whether a panel shows it. A histogram is shown by one of its three series. The address space says nothing to anybody, and
/// stands among the metrics because Prometheus' own clients have it.
fn is_shown(metric: &str, shown: &BTreeSet<String>) -> bool {
    let histogram = ["_bucket", "_count", "_sum"].iter().find_map(|end| metric.strip_suffix(end));
    let is_part = |name: &String| histogram.is_some_and(|histogram| name.strip_prefix(histogram) == Some("_bucket"));
    shown.contains(metric) || shown.iter().any(is_part) || metric == "process_virtual_memory_bytes"
}

#[test]
fn what_vanished_before_it_was_read_is_no_failure() {
    let dashboard = fs::read_to_string(deploy("grafana-dashboard.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("the dashboard is JSON");
    let failures = dashboard["panels"].as_array().expect("panels").iter().filter(|panel| {
        ["title", "description"].iter().any(|field| panel[field].as_str().is_some_and(|text| text.contains("ailure")))
    });
    let mut queries = Vec::new();
    failures.for_each(|panel| collect(&panel["targets"], &mut queries));
    let rules = fs::read_to_string(deploy("alerts.yml")).expect("the alert rules");
    queries.extend(rules.lines().filter(|line| line.contains("expr: ")).map(str::to_owned));
    assert!(queries.iter().any(|query| query.contains("apollonia_failures_total")), "{queries:?}");
    assert!(!queries.iter().any(|query| query.contains("gone")), "{queries:?}");
}

#[test]
fn every_alert_names_a_metric_that_exists() {
    let rules = fs::read_to_string(deploy("alerts.yml")).expect("the alert rules");
    let queries: Vec<String> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned).collect();
    let alerts = rules.lines().filter(|line| line.trim().starts_with("- alert: ")).count();
    assert_eq!(queries.len(), alerts, "each rule has its query on one line");
    assert_answered(&queries);
}

#[test]
fn a_container_is_there_after_a_boot_and_a_reload_is_a_rescan() {
    let read = |path| fs::read_to_string(path).expect("a file of the project");
    let compose = read(deploy("compose.yaml"));
    let restarts: Vec<&str> = compose.lines().filter(|line| line.trim().starts_with("restart: ")).collect();
    assert!(restarts.len() >= 2 && restarts.iter().all(|line| line.ends_with(" unless-stopped")), "{restarts:?}");
    let operations = read(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md"));
    let runs = operations.lines().filter(|line| line.contains("docker run -d")).collect::<Vec<_>>();
    assert!(!runs.is_empty() && runs.iter().all(|line| line.contains("--restart unless-stopped")), "{runs:?}");
    let unit = read(deploy("apollonia-ingestor.service"));
    assert!(unit.lines().any(|line| line == "ExecReload=/bin/kill -HUP $MAINPID"), "{unit}");
}

fn deploy(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

/// Every string under the key `expr`, at any depth.
fn collect(value: &Value, queries: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(query) if key == "expr" => queries.push(query.clone()),
                    _ => collect(value, queries),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, queries)),
        _ => {}
    }
}

#[track_caller]
fn assert_answered(queries: &[String]) {
    let offered = offered();
    for query in queries {
        let asked = asked(query);
        assert!(!asked.is_empty(), "no metric is asked for: {query}");
        for (metric, labels) in asked {
            if BY_PROMETHEUS.contains(&metric.as_str()) {
                continue;
            }
            let known = offered.get(&metric).unwrap_or_else(|| panic!("no metric {metric} is offered: {query}"));
            for label in labels {
                let there = known.contains(&label) || LABELS_BY_PROMETHEUS.contains(&label.as_str());
                assert!(there, "{metric} has no label {label}: {query}");
            }
        }
    }
}

/// The metrics in a query, each with the labels in the braces behind it.
fn asked(query: &str) -> Vec<(String, BTreeSet<String>)> {
    let mut asked: Vec<(String, BTreeSet<String>)> = Vec::new();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        let name = rest.len() - rest.trim_start_matches(|it: char| it.is_ascii_alphanumeric() || it == '_').len();
        let (word, behind) = rest.split_at(name.max(first.len_utf8()));
        rest = behind;
        match first {
            '{' => {
                let (braces, behind) = behind.split_once('}').expect("a closing brace");
                let labels = braces.split(',').filter_map(|each| each.split(['=', '!']).next()).map(str::to_owned);
                asked.last_mut().expect("a metric before the braces").1.extend(labels);
                rest = behind;
            }
            '[' => rest = behind.split_once(']').expect("a closing bracket").1,
            _ if name == 0 || first.is_ascii_digit() => {}
            // A list of labels follows these.
            _ if ["by", "without", "on", "ignoring"].contains(&word) => {
                rest = behind.split_once(')').expect("a list of labels").1;
            }
            _ if WORDS.contains(&word) => {}
            // A function: its arguments follow, or the grouping of an aggregation.
            _ if ["(", "by", "without"].iter().any(|next| behind.trim_start().starts_with(next)) => {}
            _ => asked.push((word.to_owned(), BTreeSet::new())),
        }
    }
    asked
}

/// Reads the Prometheus text format: `name{label="value"} number`, and comments.
fn parse(text: &str) -> Offered {
    let mut offered = Offered::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let end = line.find(['{', ' ']).expect("a name and a value");
        let (name, rest) = line.split_at(end);
        let labels = rest.strip_prefix('{').and_then(|rest| rest.rsplit_once('}')).map_or("", |(labels, _)| labels);
        let names = labels.split("\",").filter_map(|each| each.split_once('=')).map(|(label, _)| label.to_owned());
        offered.entry(name.to_owned()).or_default().extend(names);
    }
    offered
}

/// The metrics of a running service.
fn offered() -> Offered {
    let (_root, data, _) = directories();
    let service = Setup::new(&["watch", "--output", "none"]).env("DATA_DIRECTORY", &data).spawn();
    service.wait_ready();
    parse(&get(&service.control_socket(), "/metrics").2)
}
