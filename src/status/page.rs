//! `GET /`: the status as one page for people, without anything from elsewhere.
//!
//! Names of files are others' words. Each goes through [`Html`], which leaves no character that HTML or a reader's eye would
//! act on; and the page's policy allows its own style and its own script alone, by their hashes.

use std::fmt::{self, Display, Write};
use std::sync::LazyLock;

use indicatif::{DecimalBytes, HumanDuration};
use sha2::{Digest, Sha256};

use super::file::{EndedFile, Reading, RefusedFile, ShownPath, WaitingFile};
use super::history::{Rate, SAMPLES_MAX};
use super::{Files, Status};
use crate::health;
use crate::progress::BrokerState;
use crate::shown::line;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The height of a chart, in units of its own; it is one unit wide for each sample.
const CHART_HEIGHT: f64 = 40.0;

/// The page's Content-Security-Policy.
pub static POLICY: LazyLock<String> = LazyLock::new(|| {
    let [style, script] = [STYLE, SCRIPT].map(|text| base64(&Sha256::digest(text)));
    format!(
        "default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// A text as HTML shows it, also within the quotes of an attribute: on one line, without the passwords that this process was
/// given ([`line`]).
struct Html<T>(T);

impl<T: Display> Display for Html<T> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for each in line(&self.0).chars() {
            match each {
                '&' => to.write_str("&amp;")?,
                '<' => to.write_str("&lt;")?,
                '>' => to.write_str("&gt;")?,
                '"' => to.write_str("&quot;")?,
                '\'' => to.write_str("&#39;")?,
                each => to.write_char(each)?,
            }
        }
        Ok(())
    }
}

/// The page of a status, with what happened from sample to sample.
#[must_use]
pub fn page(status: &Status<'_>, steps: &[Rate]) -> String {
    let mut to = String::with_capacity(1 << 15);
    // A String takes everything.
    let _ = write_page(&mut to, status, steps);
    to
}

fn write_page(to: &mut String, status: &Status<'_>, steps: &[Rate]) -> fmt::Result {
    let (word, _) = verdict(status);
    write!(
        to,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<link rel=\"icon\" href=\"data:,\">\n<title>{word}: apollonia-ingestor</title>\n<style>{STYLE}</style>\n<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>\n</head>\n<body>\n<p id=\"silent\">The service does not answer any more. This is what it said last.</p>\n<main>\n"
    )?;
    write_header(to, status)?;
    write_facts(to, status)?;
    write_charts(to, status, steps)?;
    write_reading(to, &status.reading)?;
    if let Some(files) = &status.files {
        write_files(to, files)?;
    }
    if let Some(missing) = &status.files_missing {
        let what = if status.files.is_none() { "single files" } else { "some files" };
        writeln!(to, "<section><h2>Files</h2>Nothing is known of {what} now: {}.</section>", Html(missing))?;
    }
    writeln!(
        to,
        "<footer>apollonia-ingestor {}, process {}, {}, up {:#}. The same as JSON: /status; for Prometheus: /metrics.</footer>",
        status.version,
        status.pid,
        status.time,
        HumanDuration(std::time::Duration::from_secs(status.uptime_seconds))
    )?;
    write!(to, "</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n")
}

/// The verdict in a word, and the class of its color.
fn verdict(status: &Status<'_>) -> (&'static str, &'static str) {
    match status.status {
        health::Status::Unhealthy => ("unhealthy", "bad"),
        health::Status::Starting => ("starting", "fair"),
        health::Status::Stopping => ("stopping", "fair"),
        health::Status::Healthy if status.ready => ("healthy", "good"),
        health::Status::Healthy => ("not ready", "fair"),
    }
}

fn write_header(to: &mut String, status: &Status<'_>) -> fmt::Result {
    let (word, class) = verdict(status);
    let sentence =
        if status.status == health::Status::Healthy && !status.ready { &status.readiness } else { &status.summary };
    writeln!(to, "<header class=\"{class}\"><h1>{word}</h1><p>{}</p></header>", Html(sentence))
}

fn write_facts(to: &mut String, status: &Status<'_>) -> fmt::Result {
    to.write_str("<section><dl>")?;
    let mut fact = |name: &str, value: &dyn Display| write!(to, "<dt>{name}</dt><dd>{}</dd>", Html(value));
    if let Some(facts) = status.service {
        let directories: Vec<String> = facts.directories.iter().map(|path| format!("{path:?}")).collect();
        let below = if facts.recursive { ", with sub-directories" } else { ", without sub-directories" };
        fact("Directories", &format!("{}{below}", directories.join(", ")))?;
        fact("Filters", if facts.filters.is_empty() { &"none: every file is published" } else { &facts.filters })?;
        fact("Output", &facts.output)?;
        fact("Reading", &format!("{}, {} workers; {}", facts.engine, facts.workers, facts.protection))?;
    }
    if let Some(exchange) = status.exchange {
        fact("Exchange", &exchange)?;
    }
    let broker = match status.broker {
        BrokerState::Unused => None,
        BrokerState::Disconnected => Some("there is no connection"),
        BrokerState::Connected => Some("connected"),
        BrokerState::Blocked => Some("connected, and takes no messages now"),
    };
    if let Some(broker) = broker {
        fact("Broker", &broker)?;
    }
    fact(
        "Since the start",
        &format!("{} messages confirmed, {} files could not be read", status.confirmed_messages, status.failed_files),
    )?;
    to.write_str("</dl></section>\n")
}

fn write_charts(to: &mut String, status: &Status<'_>, steps: &[Rate]) -> fmt::Result {
    to.write_str("<section><h2>The last 15 minutes</h2><div class=\"charts\">")?;
    let last = steps.last();
    let values = |of: fn(&Rate) -> f64| steps.iter().map(of).collect::<Vec<f64>>();
    let files = format!("{:.1} files/s", last.map_or(0.0, |rate| rate.files_per_second));
    write_chart(to, "Files a second", &files, &values(|rate| rate.files_per_second), |peak| format!("{peak:.1}"))?;
    let bytes = |bytes: f64| format!("{}/s", shown_bytes(bytes));
    let now = bytes(last.map_or(0.0, |rate| rate.bytes_per_second));
    write_chart(to, "Bytes a second", &now, &values(|rate| rate.bytes_per_second), bytes)?;
    let milliseconds = |seconds: f64| format!("{:.1} ms", 1000.0 * seconds);
    let latency = last.and_then(|rate| rate.latency_seconds).map_or_else(|| "idle".to_owned(), milliseconds);
    write_chart(
        to,
        "Event to confirm, mean",
        &latency,
        &values(|rate| rate.latency_seconds.unwrap_or(0.0)),
        milliseconds,
    )?;
    let pending = format!("{} files", status.pending_files);
    write_chart(to, "Pending", &pending, &values(|rate| rate.pending as f64), |peak| format!("{peak:.0}"))?;
    to.write_str("</div></section>\n")
}

fn write_chart(to: &mut String, name: &str, now: &str, values: &[f64], show: impl Fn(f64) -> String) -> fmt::Result {
    let peak = values.iter().copied().fold(0.0, f64::max);
    let width = SAMPLES_MAX - 1;
    // The newest stand at the right.
    let first = width.saturating_sub(values.len());
    let mut line = String::new();
    for (number, value) in values.iter().enumerate() {
        let y = CHART_HEIGHT - 1.0 - (CHART_HEIGHT - 2.0) * (value / peak.max(f64::MIN_POSITIVE));
        write!(line, "{},{y:.1} ", first + number)?;
    }
    let (end, base) = (first + values.len().saturating_sub(1), CHART_HEIGHT);
    write!(
        to,
        "<figure><figcaption>{name}</figcaption><b>{now}</b> <span class=\"soft\">peak {}</span><svg viewBox=\"0 0 {width} {base}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{name}: {now}\"><polygon points=\"{first},{base} {line}{end},{base}\"/><polyline points=\"{line}\"/></svg></figure>",
        show(peak)
    )
}

fn write_reading(to: &mut String, reading: &[Reading]) -> fmt::Result {
    write_table(to, "Being read", None, &["file", "", "so far"], reading, |to, it| {
        let (bytes, of) = (it.bytes, it.of_bytes.max(1));
        write_path(to, &it.path)?;
        write!(to, "<td><progress max=\"{of}\" value=\"{bytes}\"></progress></td>")?;
        write!(to, "<td class=\"few\">{} of {}</td>", DecimalBytes(bytes), DecimalBytes(of))
    })
}

fn write_files(to: &mut String, files: &Files) -> fmt::Result {
    write_waiting(to, files)?;
    let refused = &files.unreadable_files;
    write_table(
        to,
        "Cannot be read",
        Some(files.unreadable),
        &["file", "since", "why"],
        refused,
        |to, it: &RefusedFile| {
            write_path(to, &it.path)?;
            write!(to, "<td class=\"few\">{}</td><td class=\"bad\">{}</td>", age(it.seconds), Html(&it.error))
        },
    )?;
    let cause = files.unwatched_error.as_deref().unwrap_or_default();
    let unwatched = &files.unwatched_directories;
    write_table(
        to,
        "Without a watch, rescanned instead",
        Some(files.unwatched),
        &["directory", "why"],
        unwatched,
        |to, it| {
            write_path(to, it)?;
            write!(to, "<td>{}</td>", Html(cause))
        },
    )?;
    write_ended(to, files)
}

fn write_waiting(to: &mut String, files: &Files) -> fmt::Result {
    if files.waiting.is_empty() {
        to.write_str("<section><h2>Waiting</h2>Nothing waits.</section>\n")?;
    }
    write_table(
        to,
        "Waiting",
        Some(files.pending),
        &["file", "since", "why"],
        &files.waiting,
        |to, it: &WaitingFile| {
            write_path(to, &it.path)?;
            write!(to, "<td class=\"few\">{}</td><td>{}</td>", age(it.seconds), Html(&it.why))
        },
    )
}

/// The last failures, and the last files.
fn write_ended(to: &mut String, files: &Files) -> fmt::Result {
    write_table(to, "Last failures", None, &["file", "when", "what"], &files.failures, |to, it: &EndedFile| {
        write_path(to, &it.path)?;
        let error = it.error.as_deref().unwrap_or(it.outcome);
        write!(to, "<td class=\"few\">{}</td><td class=\"bad\">{}</td>", Html(&it.time), Html(error))
    })?;
    let columns = ["file", "when", "outcome", "bytes", "took"];
    write_table(to, "Last files", None, &columns, &files.recent, |to, it: &EndedFile| {
        write_path(to, &it.path)?;
        let bytes = it.said.bytes.map_or_else(String::new, |bytes| DecimalBytes(bytes).to_string());
        write!(to, "<td class=\"few\">{}</td><td>{}</td>", Html(&it.time), it.outcome)?;
        write!(to, "<td class=\"few\">{bytes}</td><td class=\"few\">{:.1} ms</td>", 1000.0 * it.seconds)
    })
}

/// A table under its heading, unless it is empty. `all`: how many there are, of which the table shows some.
fn write_table<T>(
    to: &mut String,
    heading: &str,
    all: Option<usize>,
    columns: &[&str],
    rows: &[T],
    write_row: impl Fn(&mut String, &T) -> fmt::Result,
) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    write!(to, "<section><h2>{heading}")?;
    if let Some(all) = all {
        let some = if all > rows.len() { format!(", the oldest {}", rows.len()) } else { String::new() };
        write!(to, " <small>{all}{some}</small>")?;
    }
    to.write_str("</h2><table><thead><tr>")?;
    columns.iter().try_for_each(|column| write!(to, "<th>{column}</th>"))?;
    to.write_str("</tr></thead><tbody>\n")?;
    for row in rows {
        to.write_str("<tr>")?;
        write_row(to, row)?;
        to.write_str("</tr>\n")?;
    }
    to.write_str("</tbody></table></section>\n")
}

fn write_path(to: &mut String, path: &ShownPath) -> fmt::Result {
    write!(to, "<td>{}</td>", Html(&path.path))
}

fn age(seconds: f64) -> String {
    format!("{:#}", HumanDuration(std::time::Duration::from_secs_f64(seconds.clamp(0.0, 1e12))))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is shown roughly")]
fn shown_bytes(bytes: f64) -> DecimalBytes {
    DecimalBytes(bytes as u64)
}

/// Base64 with padding (RFC 4648, 4), as a policy writes a hash.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let bits = chunk.iter().chain(&[0; 3]).take(3).fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        let digit =
            |place: usize| if place <= chunk.len() { char::from(DIGITS[bits >> (18 - 6 * place) & 63]) } else { '=' };
        [digit(0), digit(1), digit(2), digit(3)]
    };
    bytes.chunks(3).flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::History;
    use super::*;
    use crate::files::version::Timestamp;
    use crate::inquiry::recent::{End, Ended};
    use crate::inquiry::{Answer, Held, Refusal, Waiting};
    use crate::progress::Progress;
    use crate::status::View;

    /// What HTML, an attribute, a script or an eye would act on.
    const HOSTILE: &str =
        "/data/</td></main><script>alert('1')</script><img src=x onerror=\"alert(2)\">&lt;\u{202e}\u{1b}[31m\n";

    fn hostile_answer() -> Answer {
        let path = HOSTILE.as_bytes().to_vec();
        let ended = |end| Ended { path: path.clone(), at: Timestamp { seconds: 0, nanoseconds: 0 }, seconds: 0.1, end };
        let age = Duration::from_secs(70);
        Answer {
            pending: 700,
            waiting: vec![Waiting { path: path.clone(), volume: 0, age, held: Held::Settling }],
            refused: 1,
            refusals: vec![Refusal { path: path.clone(), directory: false, age, cause: HOSTILE.to_owned() }],
            unwatched: 1,
            unwatched_paths: vec![path.clone()],
            unwatched_cause: Some(HOSTILE.to_owned()),
            recent: vec![ended(End::Gone), ended(End::TooLarge(7, HOSTILE.into()))],
            failures: vec![ended(End::Unreadable(HOSTILE.into()))],
            file: None,
        }
    }

    #[test]
    fn a_hostile_name_stays_text_in_every_place() {
        let progress = Progress::default();
        let _ = progress.exchange.set(HOSTILE.to_owned());
        let view = View { progress: &progress, stall: Duration::from_secs(60), began: Instant::now() };
        let mut status = view.status(&History::default(), None);
        status.files = Some(view.files(&hostile_answer(), &[]));
        status.summary = HOSTILE.to_owned();
        status.reading = vec![Reading { path: ShownPath::of(HOSTILE.as_bytes()), bytes: 1, of_bytes: 2 }];
        let page = page(&status, &[]);
        assert_eq!(page.matches("<script").count(), 1, "its own");
        assert!(!page.contains("<img") && !page.contains('\u{202e}') && !page.contains('\u{1b}'), "{page}");
        assert_eq!((page.matches("</main>").count(), page.matches("onerror=\"").count()), (1, 0));
        assert!(page.matches("&lt;script&gt;alert(&#39;1&#39;)").count() >= 10, "{page}");
        assert!(page.contains("<small>700, the oldest 1</small>"));
    }

    #[test]
    fn a_chart_of_nothing_and_one_of_much_fit_their_frame() {
        for values in [vec![], vec![0.0], vec![f64::MAX, 1.0], vec![1.0; SAMPLES_MAX - 1]] {
            let mut chart = String::new();
            write_chart(&mut chart, "name", "now", &values, |peak| peak.to_string()).unwrap();
            let points = chart.split("<polyline points=\"").nth(1).unwrap().split('"').next().unwrap();
            for (x, y) in points.split_whitespace().map(|point| point.split_once(',').unwrap()) {
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((0.0..180.0).contains(&x) && (0.0..=CHART_HEIGHT).contains(&y), "{x},{y}");
            }
        }
    }

    #[test]
    fn base64_is_the_rfcs() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("\u{fb}\u{ff}", "w7vDvw=="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn the_page_takes_nothing_from_elsewhere() {
        assert!(
            ![STYLE, SCRIPT].iter().any(|text| text.contains("http:") || text.contains("url(") || text.contains("</"))
        );
        assert!(POLICY.starts_with("default-src 'none'"));
    }
}
