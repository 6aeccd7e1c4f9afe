//! The form of log lines: each event is one line, whatever names and values it holds (see [`crate::shown`]).

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::shown::{json_line, line};

/// The fields of a line of text: the message, then each other field as ` name=value`.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextFields;

impl<'a> FormatFields<'a> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'a>, fields: R) -> fmt::Result {
        let mut text = Text { writer, first: true, result: Ok(()) };
        fields.record(&mut text);
        text.result
    }
}

struct Text<'a> {
    writer: Writer<'a>,
    first: bool,
    result: fmt::Result,
}

impl Text<'_> {
    fn write(&mut self, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
        if !std::mem::take(&mut self.first) {
            self.writer.write_char(' ')?;
        }
        if field.name() != "message" {
            write!(self.writer, "{}=", field.name())?;
        }
        self.writer.write_str(&line(format_args!("{value:?}")))
    }
}

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.result.is_ok() {
            self.result = self.write(field, value);
        }
    }
}

/// Lines of JSON as another format writes them, with what readers of text would act on escaped.
#[derive(Debug)]
pub(super) struct JsonLines<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for JsonLines<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut json = String::new();
        self.0.format_event(context, Writer::new(&mut json), event)?;
        writeln!(to, "{}", json_line(json.trim_end_matches('\n')))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use tracing::{error, info, warn};
    use tracing_subscriber::fmt::layer;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    const NAME: &str = "a\nforged\u{1b}[31m\u{7}\u{85}\u{9b}\u{2028}\u{202e}b";

    fn log_in_every_way() {
        info!("plain {NAME}");
        warn!(path = NAME, "quoted");
        error!(path = %NAME, other = ?NAME, "shown");
        info!("amqp://user:s3cret@host");
    }

    #[test]
    fn an_event_is_one_line_of_text_and_one_of_json() {
        let (text, json) = (Lines::default(), Lines::default());
        let (to_text, to_json) = (text.clone(), json.clone());
        let text_layer = layer().with_ansi(false).fmt_fields(TextFields).with_writer(move || to_text.clone());
        let json_layer = layer().json().flatten_event(true).map_event_format(JsonLines);
        let json_layer = json_layer.with_writer(move || to_json.clone());
        let subscriber = tracing_subscriber::registry().with(text_layer).with(json_layer);
        tracing::subscriber::with_default(subscriber, log_in_every_way);
        for lines in [text.text(), json.text()] {
            assert_eq!(lines.lines().count(), 4, "{lines}");
            assert!(lines.chars().all(|each| each == '\n' || !each.is_control()), "{lines:?}");
            assert!(!lines.contains(['\u{2028}', '\u{202e}']) && !lines.contains("s3cret"), "{lines:?}");
        }
        let objects = json.text();
        let objects = objects.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        assert_eq!(objects.filter(|object| object["path"] == NAME).count(), 2);
        assert!(text.text().contains(" WARN an_event") || text.text().contains("quoted path=\"a\\nforged\\u{1b}"));
    }
}
