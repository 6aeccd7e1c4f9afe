//! A file of settings, read as systemd reads `EnvironmentFile=` (systemd.exec(5)), because the service gets it that way.

use std::iter::Peekable;
use std::str::Chars;

/// What a file of settings says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EnvFile {
    /// Names and values, in the file's order; of a name that repeats the last one counts.
    pub(super) variables: Vec<(String, String)>,
    /// The numbers of the lines, from 1, that are neither empty nor a comment and set nothing.
    pub(super) ignored: Vec<usize>,
}

impl EnvFile {
    pub(super) fn parse(text: &str) -> Self {
        let mut reader = Reader { rest: text.chars().peekable(), line: 1 };
        let mut file = Self::default();
        while reader.skip_to_assignment() {
            let line = reader.line;
            match reader.assignment() {
                Some(variable) => file.variables.push(variable),
                None => file.ignored.push(line),
            }
        }
        file
    }
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    /// The line of the next character, from 1.
    line: usize,
}

impl Reader<'_> {
    /// Skips empty lines and comments; `false` at the end of the file.
    fn skip_to_assignment(&mut self) -> bool {
        while let Some(&next) = self.rest.peek() {
            match next {
                '#' | ';' => self.skip_line(),
                next if next.is_whitespace() => drop(self.next()),
                _ => return true,
            }
        }
        false
    }

    /// The assignment that begins here; `None` for a line that is none, which is skipped.
    fn assignment(&mut self) -> Option<(String, String)> {
        let line = self.line;
        let mut name = String::new();
        while *self.rest.peek()? != '=' {
            name.extend(self.next().filter(|&next| next != '\n'));
            if self.line > line {
                return None;
            }
        }
        self.next();
        let value = self.value();
        let name = name.trim_end();
        is_name(name).then(|| (name.to_owned(), value))
    }

    fn value(&mut self) -> String {
        let mut value = String::new();
        loop {
            while matches!(self.rest.peek(), Some(' ' | '\t' | '\r')) {
                self.next();
            }
            match self.rest.peek() {
                Some(&quote @ ('\'' | '"')) => {
                    self.next();
                    value += &self.quoted(quote);
                }
                // Behind a closing quote the value goes on, as systemd has it.
                _ => return value + &self.unquoted(),
            }
        }
    }

    /// The rest of the line, without the whitespace at its end; a backslash keeps the next character as it is.
    fn unquoted(&mut self) -> String {
        let (mut value, mut kept) = (String::new(), 0);
        while let Some(next) = self.next().filter(|&next| next != '\n') {
            match next {
                '\\' => match self.next() {
                    Some('\n') | None => continue,
                    Some(escaped) => value.push(escaped),
                },
                next => value.push(next),
            }
            if !matches!(next, ' ' | '\t' | '\r') {
                kept = value.len();
            }
        }
        value.truncate(kept);
        value
    }

    /// What stands between quotes, over several lines if need be.
    fn quoted(&mut self, quote: char) -> String {
        let mut value = String::new();
        while let Some(next) = self.next().filter(|&next| next != quote) {
            match next {
                '\\' if quote == '"' => match self.next() {
                    Some('\n') | None => {}
                    Some(escaped @ ('"' | '\\' | '`' | '$')) => value.push(escaped),
                    Some(other) => value.extend(['\\', other]),
                },
                next => value.push(next),
            }
        }
        value
    }

    fn skip_line(&mut self) {
        while self.next().is_some_and(|next| next != '\n') {}
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        self.line += usize::from(next == '\n');
        Some(next)
    }
}

/// Whether systemd takes it as the name of a variable: letters, digits and underscores, no digit first.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|one| one.is_ascii_alphanumeric() || one == '_')
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(text: &str) -> Vec<(String, String)> {
        EnvFile::parse(text).variables
    }

    #[test]
    fn a_value_is_what_systemd_makes_of_it() {
        for (text, value) in [
            ("A=plain", "plain"),
            ("A=", ""),
            ("  A = in between\t and around \r\n", "in between\t and around"),
            ("A=no #comment", "no #comment"),
            ("A=a\\ \\\\b\\'c", "a \\b'c"),
            ("A=first\\\n second", "first second"),
            ("A='single $x \\n \"it\"'", "single $x \\n \"it\""),
            ("A=\"a \\\"b\\\" \\$ \\\\ \\n\"", "a \"b\" $ \\ \\n"),
            ("A=\"two\nlines\"", "two\nlines"),
            ("A=it's", "it's"),
            ("A=\"one\" two", "onetwo"),
            ("A='x'y\"z\"", "xy\"z\""),
            ("A=\"open", "open"),
            ("A=kept\\ ", "kept "),
            ("A=*.flac,*.mp3", "*.flac,*.mp3"),
        ] {
            assert_eq!(variables(text), [("A".to_owned(), value.to_owned())], "{text:?}");
        }
    }

    #[test]
    fn comments_and_empty_lines_count_for_nothing_and_other_lines_are_named() {
        let file = EnvFile::parse("# one\n\n; two\nA=1\nnonsense\n B-C=2\n1D=3\nexport E=4\nF=5");
        assert_eq!(file.variables, [("A".to_owned(), "1".to_owned()), ("F".to_owned(), "5".to_owned())]);
        assert_eq!(file.ignored, [5, 6, 7, 8]);
    }

    #[test]
    fn the_file_that_is_shipped_sets_the_directory_alone() {
        let shipped = EnvFile::parse(include_str!("../../../../deploy/apollonia-ingestor.env"));
        assert_eq!(shipped.variables, [("DATA_DIRECTORY".to_owned(), "/data".to_owned())]);
        assert_eq!(shipped.ignored, [0_usize; 0]);
    }
}
