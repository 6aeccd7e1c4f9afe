//! The rules of docs/ARCHITECTURE.md about which file may import which: no file from a layer above or from a sibling, no circle.
//!
//! It reads the sources as text, so it needs no build of the crate: `use` lines and paths written out in the code, outside of tests.
//! `scripts/structure` prints the same beside sizes and numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Module = Vec<String>;
/// For each file the files that it imports from, by their paths below `src/`.
type Imports = BTreeMap<String, BTreeSet<String>>;
/// The rows of the table, top first: the name and the modules of each.
type Layers = Vec<(String, Vec<String>)>;

#[test]
fn no_file_imports_from_above_or_from_a_sibling() {
    let (imports, layers) = of_this_crate();
    let wrong = against(&imports, &layers);
    assert!(wrong.is_empty(), "docs/ARCHITECTURE.md, Layers:\n{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles = circles(&of_this_crate().0);
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn made_up_sources_are_read_as_the_compiler_reads_them() {
    let imports = imports(&[
        ("lib.rs", "pub mod a;\npub mod b;\nmod c;\n"),
        // A declaration is no import, a comment and a string are none, and a test may import what it likes.
        (
            "a/mod.rs",
            "mod one;\nmod two;\n// crate::c::X\n#[cfg(test)]\nmod tests {\n    use crate::c::X;\n}\nconst C: char = '\"';\n",
        ),
        ("a/one.rs", "use super::two::{self, Y};\nuse crate::{b::Z as Other, c};\nfn f() { c::f(); two::g(); }\n"),
        ("a/two.rs", "fn f() -> crate::b::Z { \"crate::c::X\"; /* crate::c::X */ std::fs::read() }\n"),
        ("a/tests.rs", "use crate::c::X;\n"),
        ("b.rs", "#[cfg(test)]\nmod model;\nuse rustix::fs;\nmod inner {\n    use super::super::c::X;\n}\n"),
        ("b/model.rs", "use crate::a::Y;\n"),
        ("c.rs", "pub(in crate::a) fn f() {}\n"),
    ]);
    let of = |file: &str| imports[file].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(of("a/mod.rs"), [""; 0]);
    assert_eq!(of("a/one.rs"), ["a/two.rs", "b.rs", "c.rs"]);
    assert_eq!(of("a/two.rs"), ["b.rs"]);
    assert_eq!(of("b.rs"), ["c.rs"]);
    assert_eq!(of("c.rs"), [""; 0]);
    assert!(!imports.contains_key("a/tests.rs") && !imports.contains_key("b/model.rs"));
}

#[test]
fn what_breaks_a_rule_is_named() {
    let layers = layers(
        "# Layers\n\n| layer | files | what |\n| --- | --- | --- |\n| top | `a` | x |\n| stages | `b` `c` | x |\n\nText\n",
    );
    assert_eq!(layers.len(), 2);
    let imports = imports(&[
        ("a.rs", "use crate::b::X;\n"),
        ("b/mod.rs", "use one::X;\nuse crate::a::Y;\n"),
        ("b/one.rs", "use crate::c::Z;\nuse super::X;\n"),
        ("c.rs", ""),
        ("d.rs", ""),
    ]);
    assert_eq!(
        against(&imports, &layers),
        [
            "b/mod.rs imports from a.rs: stages from top",
            "b/one.rs imports from c.rs: stages from stages",
            "d.rs is in no row of the table",
        ]
    );
    assert_eq!(circles(&imports), ["a.rs and b/mod.rs are in a circle", "b/mod.rs and b/one.rs are in a circle"]);
    assert!(circles(&BTreeMap::from([("a.rs".to_owned(), BTreeSet::from(["b.rs".to_owned()]))])).is_empty());
}

fn of_this_crate() -> (Imports, Layers) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    read_below(&top.join("src"), "", &mut files);
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
    let layers = layers(&fs::read_to_string(top.join("docs/ARCHITECTURE.md")).expect("the table of layers"));
    assert!(files.len() > 20 && layers.len() > 5, "{} files, {} layers", files.len(), layers.len());
    (imports(&files), layers)
}

fn read_below(directory: &Path, prefix: &str, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).expect("the sources") {
        let path = entry.expect("the sources").path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            read_below(&path, &format!("{name}/"), files);
        } else if name.ends_with(".rs") {
            files.push((name, fs::read_to_string(&path).expect("a source")));
        }
    }
}

/// Reads the one table whose first heading is `layer`.
fn layers(text: &str) -> Layers {
    let rows = text.lines().skip_while(|line| !line.starts_with("| layer ")).skip(2);
    let cells = rows.take_while(|line| line.starts_with('|')).map(|line| line.split('|').skip(1).map(str::trim));
    cells
        .map(|mut cells| {
            let name = cells.next().unwrap_or_default().to_owned();
            let modules = cells.next().unwrap_or_default().split_whitespace();
            (name, modules.map(|module| module.trim_matches('`').to_owned()).collect())
        })
        .collect()
}

/// The row of a file, and the module of that row that it belongs to.
fn home<'a>(file: &str, layers: &'a Layers) -> Option<(usize, &'a str)> {
    let path = file.trim_end_matches(".rs");
    let belongs = |module: &str| path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let all =
        layers.iter().enumerate().flat_map(|(row, (_, modules))| modules.iter().map(move |module| (row, &**module)));
    all.filter(|(_, module)| belongs(module)).max_by_key(|(_, module)| module.len())
}

fn against(imports: &Imports, layers: &Layers) -> Vec<String> {
    let mut wrong = Vec::new();
    for (file, others) in imports {
        let Some((row, module)) = home(file, layers) else {
            wrong.push(format!("{file} is in no row of the table"));
            continue;
        };
        for other in others {
            if let Some((other_row, other_module)) = home(other, layers)
                && (other_row < row || other_row == row && other_module != module)
            {
                wrong.push(format!("{file} imports from {other}: {} from {}", layers[row].0, layers[other_row].0));
            }
        }
    }
    wrong
}

/// Each pair of files of which one imports from the other and can be reached from it. A circle of three gives three pairs.
fn circles(imports: &Imports) -> Vec<String> {
    let reached_from = |start: &str| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(file) = next.pop() {
            let new = imports.get(file).into_iter().flatten().filter(|other| reached.insert(other.as_str()));
            next.extend(new.map(String::as_str).collect::<Vec<_>>());
        }
        reached
    };
    let mut found = BTreeSet::new();
    for (file, others) in imports {
        for other in others.iter().filter(|other| reached_from(other).contains(file.as_str())) {
            let (first, second) = if file < other { (file, other) } else { (other, file) };
            found.insert(format!("{first} and {second} are in a circle"));
        }
    }
    found.into_iter().collect()
}

/// One file without comments, literals and tests.
struct Source {
    name: String,
    module: Module,
    code: String,
}

fn imports(files: &[(&str, &str)]) -> Imports {
    let mut test_modules = Vec::new();
    let sources: Vec<Source> = files
        .iter()
        .map(|(name, text)| {
            let module = module_of(name);
            let code = without_tests(without_comments(text), |name| test_modules.push(below(&module, name)));
            Source { name: (*name).to_owned(), module, code }
        })
        .collect();
    let is_test = |source: &Source| {
        let file = source.name.rsplit('/').next().unwrap_or_default();
        matches!(file, "tests.rs" | "model.rs")
            || file.ends_with("_test.rs")
            || test_modules.iter().any(|tests| source.module.starts_with(tests))
    };
    let sources: Vec<Source> = sources.into_iter().filter(|source| !is_test(source)).collect();
    let library = sources.iter().filter(|source| source.name != "main.rs");
    let modules: BTreeMap<Module, String> =
        library.map(|source| (source.module.clone(), source.name.clone())).collect();
    sources.iter().map(|source| (source.name.clone(), imports_of(source, &modules))).collect()
}

fn module_of(file: &str) -> Module {
    let mut parts: Module = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if matches!(parts.last().map(String::as_str), Some("mod")) || matches!(file, "lib.rs" | "main.rs") {
        parts.pop();
    }
    parts
}

fn below(module: &[String], name: &str) -> Module {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

fn imports_of(source: &Source, modules: &BTreeMap<Module, String>) -> BTreeSet<String> {
    let mut names: BTreeMap<String, Option<Module>> = BTreeMap::new();
    let mut found: Vec<Option<Module>> = Vec::new();
    let (uses, rest) = split_uses(&source.code);
    for (at, tree) in uses {
        for (path, name) in leaves(&tree, &[]) {
            let path = absolute(&path, &module_at(source, at), &BTreeMap::new(), modules);
            names.insert(name, path.clone());
            found.push(path);
        }
    }
    for (at, path) in paths(&rest) {
        found.push(absolute(&path, &module_at(source, at), &names, modules));
    }
    let file_of = |path: Module| {
        let longest = (0..=path.len()).rev().find_map(|length| modules.get(&path[..length]));
        longest.cloned().unwrap_or_else(|| "lib.rs".to_owned())
    };
    found.into_iter().flatten().map(file_of).filter(|file| *file != source.name).collect()
}

/// A path from the crate's root on; nothing for one of another crate.
fn absolute(
    path: &[String],
    module: &[String],
    names: &BTreeMap<String, Option<Module>>,
    modules: &BTreeMap<Module, String>,
) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" | "apollonia_ingestor" => Some(rest.to_vec()),
        "self" => absolute_from(module, rest),
        // The parent's `use std::sync`, so that a test can put a model checker's `sync` in its place (docs/testing.md).
        "super" if rest.first().is_some_and(|name| name == "sync") => None,
        "super" => absolute_from(&module[..module.len().saturating_sub(1)], rest),
        _ => match names.get(first) {
            Some(known) => known.as_ref().map(|known| [known, rest].concat()),
            None => modules.contains_key(&below(module, first)).then(|| [module, path].concat()),
        },
    }
}

fn absolute_from(module: &[String], rest: &[String]) -> Option<Module> {
    match rest.split_first() {
        Some((first, rest)) if first == "super" => absolute_from(&module[..module.len().saturating_sub(1)], rest),
        _ => Some([module, rest].concat()),
    }
}

/// The trees of the `use` items with their positions, and the code without them.
fn split_uses(code: &str) -> (Vec<(usize, String)>, String) {
    let (mut uses, mut rest) = (Vec::new(), code.to_owned());
    for (at, _) in code.match_indices("use") {
        let begins = !code[..at].ends_with(is_word) && code[at + 3..].starts_with(char::is_whitespace);
        if begins && let Some(length) = code[at..].find(';') {
            uses.push((at, code[at + 3..at + length].to_owned()));
            rest.replace_range(at..at + length, &" ".repeat(length));
        }
    }
    (uses, rest)
}

/// The paths of a `use` tree, each with the name that it brings in.
fn leaves(tree: &str, before: &[String]) -> Vec<(Module, String)> {
    fn segments(text: &str) -> impl Iterator<Item = String> {
        text.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty())
    }
    if let Some((head, rest)) = tree.split_once('{') {
        let before: Module = before.iter().cloned().chain(segments(head)).collect();
        let (mut depth, mut found, mut start) = (0_i32, Vec::new(), 0);
        let inner = &rest[..rest.rfind('}').unwrap_or(rest.len())];
        for (at, char) in inner.char_indices().chain([(inner.len(), ',')]) {
            depth += i32::from(char == '{') - i32::from(char == '}');
            if char == ',' && depth == 0 {
                found.extend(leaves(&inner[start..at], &before));
                start = at + 1;
            }
        }
        return found;
    }
    let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias.trim())));
    let mut path: Module = before.iter().cloned().chain(segments(path)).collect();
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let name = alias.map(str::to_owned).or_else(|| path.last().cloned());
    name.filter(|_| !tree.trim().is_empty()).map(|name| (path, name)).into_iter().collect()
}

/// Paths written out in the code: words joined by `::`, but not the path of a visibility.
fn paths(code: &str) -> Vec<(usize, Module)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = code[at..].find(is_word).map(|start| at + start) {
        let length = code[start..].find(|char: char| !is_word(char) && char != ':').unwrap_or(code.len() - start);
        at = start + length;
        let before = code[..start].trim_end();
        let part_of_another = code[..start].ends_with(['.', ':', '\'']) || before.ends_with("(in");
        let path: Module = code[start..at].trim_end_matches(':').split("::").map(str::to_owned).collect();
        let whole = path.iter().all(|part| !part.is_empty() && part.chars().all(is_word));
        if path.len() > 1 && whole && !part_of_another && !code[..start].ends_with("in ") {
            found.push((start, path));
        }
    }
    found
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// The module of a position: the file's, or one that is written out in it.
fn module_at(source: &Source, at: usize) -> Module {
    let mut module = source.module.clone();
    for (start, _) in source.code[..at].match_indices("mod ") {
        let rest = &source.code[start + 4..];
        let name = &rest[..rest.find(|char| !is_word(char)).unwrap_or(rest.len())];
        let begins = !source.code[..start].ends_with(is_word) && rest[name.len()..].trim_start().starts_with('{');
        if begins && item_end(&source.code, start) > at {
            module.push(name.to_owned());
        }
    }
    module
}

/// Where the item that begins here ends: behind its braces, or behind its semicolon.
fn item_end(code: &str, at: usize) -> usize {
    let (mut brackets, mut braces) = (0_i32, 0_i32);
    for (offset, char) in code[at..].char_indices() {
        brackets += i32::from(matches!(char, '(' | '[')) - i32::from(matches!(char, ')' | ']'));
        braces += i32::from(char == '{') - i32::from(char == '}');
        if braces == 0 && (char == '}' || char == ';' && brackets == 0) {
            return at + offset + 1;
        }
    }
    code.len()
}

/// Takes away the items under `#[cfg(test)]` and names the modules among them that are files of their own.
fn without_tests(mut code: String, mut test_module: impl FnMut(&str)) -> String {
    while let Some(start) = code.find("#[cfg(test)]").or_else(|| code.find("#[cfg(all(test")) {
        let end = item_end(&code, start);
        let mut words = code[start..end].split(|char| !is_word(char));
        if code[..end].ends_with(';') && words.any(|word| word == "mod") {
            words.next().into_iter().for_each(&mut test_module);
        }
        let blank: String = code[start..end].chars().map(|char| if char == '\n' { '\n' } else { ' ' }).collect();
        code.replace_range(start..end, &blank);
    }
    code
}

/// Takes away comments and literals.
fn without_comments(text: &str) -> String {
    let (mut code, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(char) = rest.chars().next() {
        let length = literal_or_comment(rest, code.ends_with(is_word));
        match length {
            0 => code.push(char),
            _ => code.push(' '),
        }
        rest = &rest[length.max(char.len_utf8())..];
    }
    code
}

/// How long the comment or literal is that begins here; 0 where none does.
fn literal_or_comment(text: &str, within_word: bool) -> usize {
    let upto = |end: &str, from: usize| text[from..].find(end).map_or(text.len(), |found| from + found + end.len());
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return upto("*/", 2);
    }
    let raw = text.trim_start_matches(['b', 'c']).strip_prefix('r').map(|rest| (rest, rest.trim_start_matches('#')));
    if let Some((rest, quoted)) = raw
        && !within_word
        && quoted.starts_with('"')
    {
        let hashes = rest.len() - quoted.len();
        return upto(&format!("\"{}", "#".repeat(hashes)), text.len() - quoted.len() + 1);
    }
    if text.starts_with('"') {
        let mut escaped = false;
        let end = text.char_indices().skip(1).find(|(_, char)| {
            let ends = *char == '"' && !escaped;
            escaped = *char == '\\' && !escaped;
            ends
        });
        return end.map_or(text.len(), |(at, _)| at + 1);
    }
    // A lifetime has no second quote behind its first character.
    let mut chars = text.char_indices();
    match (chars.next(), chars.next(), chars.next()) {
        (Some((_, '\'')), Some((_, '\\')), Some((at, escaped))) => upto("'", at + escaped.len_utf8()),
        (Some((_, '\'')), Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}
