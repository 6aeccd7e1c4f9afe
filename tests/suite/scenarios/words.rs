//! A line of a script as words, as a shell would part them: by blanks, but not between double quotes.

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    /// It stood in quotes: a text and no number.
    pub quoted: bool,
}

/// The words of a line up to a `#` that begins one; an error where a quote is not closed.
pub fn words_of(line: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (word, behind) = match rest.strip_prefix('"') {
            Some(inside) => {
                let (text, behind) = inside.split_once('"').ok_or("a quote is not closed")?;
                (Word { text: text.to_owned(), quoted: true }, behind)
            }
            None => {
                let (text, behind) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
                (Word { text: text.to_owned(), quoted: false }, behind)
            }
        };
        if !behind.is_empty() && !behind.starts_with(char::is_whitespace) {
            return Err(format!("no blank behind \"{}\"", word.text));
        }
        words.push(word);
        rest = behind.trim_start();
    }
    Ok(words)
}
