"""Reads the Rust files of a crate as text: what is code, what is a test, which file imports which."""

import re

CRATE = "apollonia_ingestor"
TEST_FILE = re.compile(r"(^|/)(tests|model)\.rs$|_test\.rs$")
NO_CODE = re.compile(
    r"""//[^\n]* | /\*.*?\*/  # comments
    | \b[bc]?r(?P<hashes>\#*)".*?"(?P=hashes) | "(?:\\.|[^"\\])*"  # strings
    | '(?:\\.[^']*|[^'\\\n])'  # characters, but no lifetimes
    """,
    re.S | re.X,
)
TEST_ITEM = re.compile(r"#!?\[cfg\((?:all\()?test\b[^\]]*\]")
PATH = re.compile(r"(?<![\w:.])[A-Za-z_]\w*(?:::[A-Za-z_]\w*)+")


def blank(text):
    return re.sub(r"[^\n]", " ", text)


def without_comments(text):
    """The code alone. Comments and literals become spaces, so that each line keeps its number."""
    return NO_CODE.sub(lambda found: blank(found[0]), text)


def closing(code, at):
    """Where the bracket at this position ends."""
    pairs, depth = {"(": ")", "[": "]", "{": "}"}, 0
    for end in range(at, len(code)):
        depth += (code[end] in pairs) - (code[end] in pairs.values())
        if depth == 0:
            return end
    return len(code) - 1


def item_end(code, at):
    """Where the item that begins here ends: its attributes and signature are skipped."""
    while at < len(code) and code[at] not in ";{":
        at = closing(code, at) + 1 if code[at] in "([" else at + 1
    return closing(code, at) if code[at:at + 1] == "{" else min(at, len(code) - 1)


class Source:
    """One file. `code` has neither comments nor literals nor tests; `production` is the number of its lines."""

    def __init__(self, top, path):
        self.name = path.relative_to(top).as_posix()
        parts = self.name.removesuffix(".rs").split("/")
        self.module = () if self.name in ("lib.rs", "main.rs") else tuple(parts[:-1] if parts[-1] == "mod" else parts)
        code = without_comments(path.read_text(encoding="utf-8"))
        lines = code.count("\n")
        self.test_modules = set()
        for found in list(TEST_ITEM.finditer(code)):
            if code[found.start()] == " ":
                continue  # within a test that is gone already
            inner = found[0].startswith("#!")
            start, end = (0, len(code) - 1) if inner else (found.start(), item_end(code, found.end()))
            item = code[start:end + 1]
            self.test_modules |= {self.module + (name,) for name in re.findall(r"\bmod\s+(\w+)\s*;", item)}
            lines -= item.count("\n") + 1 if item.strip() else 0
            code = code[:start] + blank(item) + code[end + 1:]
        self.code, self.production = code, max(lines, 0)

    def functions(self):
        """Each function's name, first line and number of lines."""
        for found in re.finditer(r"\bfn\s+(\w+)", self.code):
            body = self.code[found.start():item_end(self.code, found.end()) + 1]
            yield found[1], self.code.count("\n", 0, found.start()) + 1, body.count("\n") + 1

    def module_at(self, at):
        """The module of a position: the file's, or one that is written out in it."""
        inner = re.finditer(r"\bmod\s+(\w+)\s*\{", self.code)
        return self.module + tuple(
            found[1] for found in inner if found.end() <= at <= closing(self.code, found.end() - 1)
        )


def segments(path):
    return tuple(part.strip() for part in path.split("::") if part.strip())


def use_paths(tree, before=()):
    """Each path of a `use` with the name that it brings in."""
    head, brace, rest = tree.strip().partition("{")
    if brace:
        inner, depth, start = rest[:rest.rindex("}")] + ",", 0, 0
        for at, char in enumerate(inner):
            depth += (char == "{") - (char == "}")
            if char == "," and depth == 0:
                if inner[start:at].strip():
                    yield from use_paths(inner[start:at], before + segments(head))
                start = at + 1
        return
    path, _, alias = tree.strip().partition(" as ")
    parts = before + segments(path)
    parts = parts[:-1] if parts[-1] == "self" and len(parts) > 1 else parts
    yield parts, alias.strip() or parts[-1]


class Crate:
    """All files below `src/` that are no tests."""

    def __init__(self, top):
        sources = [Source(top, path) for path in sorted(top.rglob("*.rs"))]
        tests = set().union(*(source.test_modules for source in sources)) if sources else set()
        is_test = lambda module: any(module[:length] in tests for length in range(1, len(module) + 1))
        self.sources = [file for file in sources if not TEST_FILE.search(file.name) and not is_test(file.module)]
        self.modules = {file.module: file.name for file in self.sources if file.name != "main.rs"}

    def absolute(self, parts, module, names):
        """A path from the crate's root on; nothing for one of another crate."""
        first, rest = parts[0], parts[1:]
        if first in ("crate", CRATE):
            return rest
        if parts[:2] in (["super", "sync"], ("super", "sync")):
            return None  # the parent's `use std::sync`, so that a test can put a model checker's in its place
        if first in ("self", "super"):
            while parts and parts[0] in ("self", "super"):
                module, parts = (module[:-1] if parts[0] == "super" else module), parts[1:]
            return module + parts
        if first in names:
            return names[first] and names[first] + rest
        return module + parts if module + (first,) in self.modules else None

    def imports(self, source):
        """The files that this one imports from. `mod x;` alone is no import."""
        code = re.sub(r"\bpub\s*\(in [^)]*\)", lambda found: blank(found[0]), source.code)
        names, paths = {}, []
        for found in re.finditer(r"\buse\s+([^;]+);", code):
            for parts, name in use_paths(found[1]):
                path = self.absolute(parts, source.module_at(found.start()), {})
                names[name] = path
                paths.append(path)
            code = code[:found.start()] + blank(found[0]) + code[found.end():]
        for found in PATH.finditer(code):
            paths.append(self.absolute(tuple(found[0].split("::")), source.module_at(found.start()), names))
        files = set()
        for path in filter(lambda path: path is not None, paths):
            length = max(length for length in range(len(path) + 1) if path[:length] in self.modules or length == 0)
            files.add(self.modules.get(path[:length], "lib.rs"))
        return sorted(files - {source.name})


def circles(imports):
    """Groups of files that import each other, directly or not (Tarjan's strongly connected components)."""
    number, low, stack, groups = {}, {}, [], []

    def visit(file):
        number[file] = low[file] = len(number)
        stack.append(file)
        for other in imports.get(file, ()):
            if other not in number:
                visit(other)
            if other in stack:
                low[file] = min(low[file], low[other])
        if low[file] == number[file]:
            group = [stack.pop()]
            while group[-1] != file:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for file in imports:
        if file not in number:
            visit(file)
    return groups


def layers(text):
    """The rows of the layer table, top first: each a name and its modules."""
    rows, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip().strip("|").split("|")]
        if cells[0] == "layer":
            inside = True
        elif inside and not line.startswith("|"):
            break
        elif inside and not set(cells[0]) <= set("-: "):
            rows.append((cells[0], cells[1].split()))
    return rows


def layer_of(file, rows):
    """The row and the module of the table that a file belongs to."""
    path = file.removesuffix(".rs")
    found = [(len(module), row, module) for row, (_, modules) in enumerate(rows) for module in modules
             if path == module or path.startswith(module + "/")]
    return max(found)[1:] if found else None


def against_the_layers(imports, rows):
    """Imports from a row above or from another module of the same row, and files that no row names."""
    wrong, files = [], sorted(set(imports).union(*imports.values()))
    homes = {file: layer_of(file, rows) for file in files}
    wrong += [f"{file} is in no row of the table" for file in files if homes[file] is None]
    for file, others in imports.items():
        for other in others:
            if homes[file] and homes[other]:
                (row, module), (other_row, other_module) = homes[file], homes[other]
                if other_row < row or (other_row == row and module != other_module):
                    wrong.append(f"{file} -> {other} ({rows[row][0]} -> {rows[other_row][0]})")
    return wrong
