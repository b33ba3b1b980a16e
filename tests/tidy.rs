//! Reads `src/` and refuses what a compiler lets pass: imports against the arrows, powers outside their owner's folder,
//! files that do not introduce themselves, files that grew too long, work left undone.
//!
//! Method: each rule is a function over (path, text) that returns what it found, so that each is tried here on a planted
//! violation that it must find and on an honest neighbour that it must not. The text is cut into tokens first, with
//! comments and strings taken away: a word in a message is not an import.
//! Promise: what `docs/architecture.md` says of layers and owners is true of the code that was tested.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The folders and the layer each lies in. A folder imports only folders of strictly lower layers.
const LAYERS: [(&str, u8); 13] = [
    ("base", 0),
    ("format", 1),
    ("seal", 2),
    ("backing", 2),
    ("confine", 2),
    ("segment", 3),
    ("index", 3),
    ("buffer", 4),
    ("vault", 5),
    ("fs", 6),
    ("check", 6),
    ("fuse", 7),
    ("cli", 8),
];

/// A power over the outside world, and the only places that may use it.
struct Power {
    what: &'static str,
    /// Paths that betray it: a mention that contains these segments next to each other. `name!` stands for a macro.
    betrayed_by: &'static [&'static str],
    /// Files or folders below `src/`.
    owners: &'static [&'static str],
}

const POWERS: [Power; 7] = [
    Power { what: "the database", betrayed_by: &["redb"], owners: &["index/"] },
    Power {
        what: "ciphers and codecs",
        betrayed_by: &["aws_lc_rs", "chacha20poly1305", "argon2", "zstd", "lz4_flex"],
        owners: &["seal/"],
    },
    Power { what: "the kernel's FUSE protocol", betrayed_by: &["fuser"], owners: &["fuse/"] },
    Power {
        what: "talking to a person",
        betrayed_by: &[
            "clap",
            "indicatif",
            "println!",
            "eprintln!",
            "print!",
            "eprint!",
            "dbg!",
            "std::io::stdout",
            "std::io::stderr",
            "std::io::stdin",
        ],
        owners: &["cli/", "main.rs"],
    },
    Power {
        what: "files",
        betrayed_by: &[
            "std::fs",
            "File::open",
            "File::create",
            "libc::open",
            "libc::openat",
            "libc::creat",
            "libc::read",
            "libc::write",
            "libc::pread",
            "libc::pwrite",
            "libc::readv",
            "libc::writev",
            "libc::preadv",
            "libc::pwritev",
            "libc::fsync",
            "libc::fdatasync",
            "libc::syncfs",
            "libc::fallocate",
            "libc::ftruncate",
            "libc::truncate",
            "libc::unlink",
            "libc::unlinkat",
            "libc::rename",
            "libc::renameat",
            "libc::renameat2",
            "libc::mkdir",
            "libc::mkdirat",
            "libc::flock",
            "libc::posix_fadvise",
            "libc::stat",
            "libc::fstat",
            "libc::fstatat",
            "libc::statvfs",
            "libc::fstatvfs",
        ],
        owners: &["backing/", "cli/"],
    },
    Power {
        what: "clock, chance and memory",
        betrayed_by: &[
            "SystemTime::now",
            "Instant::now",
            "getrandom",
            "rand",
            "libc::clock_gettime",
            "libc::getrandom",
            "sysinfo",
        ],
        owners: &["base/world.rs", "base/file_clock.rs"],
    },
    Power {
        what: "giving up rights",
        betrayed_by: &["landlock", "seccompiler", "libc::SYS_seccomp", "libc::SYS_capset", "libc::PR_SET_NO_NEW_PRIVS"],
        owners: &["confine/"],
    },
];

/// Uses of a power outside its owner that stand for a reason: (power, file or folder, path that betrays it, reason). One that is
/// no longer needed is refused too.
const EXCEPTIONS: &[(&str, &str, &str, &str)] = &[
    (
        "clock, chance and memory",
        "vault/",
        "Instant::now",
        "how long each stage took, for the histograms that /.storage shows: nothing is decided by it",
    ),
    ("files", "base/file_clock.rs", "std::fs", "a file in memory, whose change time is the kernel's clock for files"),
    ("files", "fuse/mod.rs", "std::fs", "opens /dev/fuse, the kernel's side of the mount and no file of ours"),
    (
        "files",
        "confine/mod.rs",
        "std::fs",
        "counts this process' threads in /proc, for what binds one does not bind another",
    ),
    ("files", "fuse/groups.rs", "std::fs", "asks /proc for a caller's groups, which a request does not name"),
    (
        "files",
        "fuse/privileges.rs",
        "std::fs",
        "asks /proc whether a caller may leave set-id bits, which a request does not say",
    ),
];

/// Files that need not say who calls them and what they promise: the crate's two doors, which say what lies behind.
const DOORS: [&str; 2] = ["lib.rs", "main.rs"];

const CODE_LINES_MAX: usize = 500;
const DOC_LINES_MIN: usize = 3;

// ---------------------------------------------------------------------------------------------------------------------
// Reading Rust, as far as these rules need it.

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    line: usize,
    text: String,
}

/// The text with comments, strings and character literals blanked; line breaks stay.
fn blanked(text: &str) -> String {
    let b: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let blank = |out: &mut String, c: char| out.push(if c == '\n' { '\n' } else { ' ' });
    while i < b.len() {
        let word_before = i > 0 && (b[i - 1].is_alphanumeric() || b[i - 1] == '_');
        if b[i] == '/' && b.get(i + 1) == Some(&'/') {
            while i < b.len() && b[i] != '\n' {
                blank(&mut out, b[i]);
                i += 1;
            }
        } else if b[i] == '/' && b.get(i + 1) == Some(&'*') {
            let mut depth = 0;
            while i < b.len() {
                if b[i] == '/' && b.get(i + 1) == Some(&'*') {
                    depth += 1;
                    out.push_str("  ");
                    i += 2;
                } else if b[i] == '*' && b.get(i + 1) == Some(&'/') {
                    depth -= 1;
                    out.push_str("  ");
                    i += 2;
                    if depth == 0 {
                        break;
                    }
                } else {
                    blank(&mut out, b[i]);
                    i += 1;
                }
            }
        } else if let Some(hashes) = raw_string_at(&b, i).filter(|_| !word_before) {
            let quote = b[i..].iter().position(|&c| c == '"').unwrap() + i;
            let mut end = quote + 1;
            while end < b.len()
                && !(b[end] == '"' && b[end + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes)
            {
                end += 1;
            }
            let stop = (end + 1 + hashes).min(b.len());
            b[i..stop].iter().for_each(|&c| blank(&mut out, c));
            i = stop;
        } else if b[i] == '"' {
            let mut end = i + 1;
            while end < b.len() && b[end] != '"' {
                end += if b[end] == '\\' { 2 } else { 1 };
            }
            let stop = (end + 1).min(b.len());
            b[i..stop].iter().for_each(|&c| blank(&mut out, c));
            i = stop;
        } else if b[i] == '\'' && (b.get(i + 1) == Some(&'\\') || b.get(i + 2) == Some(&'\'')) {
            // A character; a lifetime has no quote two places on.
            let mut end = i + 1;
            while end < b.len() && b[end] != '\'' {
                end += if b[end] == '\\' { 2 } else { 1 };
            }
            let stop = (end + 1).min(b.len());
            b[i..stop].iter().for_each(|&c| blank(&mut out, c));
            i = stop;
        } else {
            out.push(b[i]);
            i += 1;
        }
    }
    out
}

/// How many `#` the raw string that begins here has, if one does.
fn raw_string_at(b: &[char], at: usize) -> Option<usize> {
    let mut i = at;
    if matches!(b.get(i), Some('b' | 'c')) {
        i += 1;
    }
    if b.get(i) != Some(&'r') {
        return None;
    }
    let hashes = b[i + 1..].iter().take_while(|&&c| c == '#').count();
    (b.get(i + 1 + hashes) == Some(&'"')).then_some(hashes)
}

fn tokens(text: &str) -> Vec<Token> {
    let blank = blanked(text);
    let mut out = Vec::new();
    for (n, line) in blank.lines().enumerate() {
        let b: Vec<char> = line.chars().collect();
        let mut i = 0;
        while i < b.len() {
            let from = i;
            if b[i].is_alphanumeric() || b[i] == '_' {
                while i < b.len() && (b[i].is_alphanumeric() || b[i] == '_') {
                    i += 1;
                }
            } else if b[i] == ':' && b.get(i + 1) == Some(&':') {
                i += 2;
            } else {
                i += 1;
            }
            if !b[from].is_whitespace() {
                out.push(Token { line: n + 1, text: b[from..i].iter().collect() });
            }
        }
    }
    out
}

/// A path that the code names, `use` trees written out, with the number of inline modules it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mention {
    line: usize,
    segments: Vec<String>,
    inline_modules: usize,
    in_test: bool,
}

fn is_word(t: &Token) -> bool {
    t.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Every path in the code. A macro call `name!` is a path of one segment, `name!`.
fn mentions(text: &str) -> Vec<Mention> {
    let t = tokens(text);
    let tests = test_modules(&t);
    let is = |i: usize, s: &str| t.get(i).is_some_and(|t: &Token| t.text == s);
    let (mut out, mut braces, mut inline, mut i) = (Vec::new(), 0usize, Vec::new(), 0);
    while i < t.len() {
        let in_test = tests.iter().any(|r| r.contains(&i));
        if is(i, "{") {
            braces += 1;
        } else if is(i, "}") {
            braces = braces.saturating_sub(1);
            if inline.last() == Some(&braces) {
                inline.pop();
            }
        } else if is(i, "mod") && t.get(i + 1).is_some_and(is_word) && is(i + 2, "{") {
            inline.push(braces);
            braces += 1;
            i += 3;
            continue;
        } else if is(i, "use") && t.get(i + 1).is_some_and(|n| is_word(n) || n.text == "{" || n.text == "::") {
            let mut flat = Vec::new();
            i = use_tree(&t, i + 1, &[], &mut flat);
            out.extend(flat.into_iter().map(|(line, segments)| Mention {
                line,
                segments,
                inline_modules: inline.len(),
                in_test,
            }));
            continue;
        } else if is_word(&t[i]) {
            let line = t[i].line;
            let mut segments = vec![t[i].text.clone()];
            while is(i + 1, "::") && t.get(i + 2).is_some_and(is_word) {
                segments.push(t[i + 2].text.clone());
                i += 2;
            }
            if is(i + 1, "!") && !is(i + 2, "=") {
                segments.last_mut().unwrap().push('!');
            }
            out.push(Mention { line, segments, inline_modules: inline.len(), in_test });
        }
        i += 1;
    }
    out
}

/// Writes out one `use` tree from token `i`; returns the token after it.
fn use_tree(t: &[Token], mut i: usize, before: &[String], out: &mut Vec<(usize, Vec<String>)>) -> usize {
    let mut path = before.to_vec();
    let line = t.get(i).map_or(0, |t| t.line);
    while i < t.len() {
        match t[i].text.as_str() {
            "{" => {
                i += 1;
                while i < t.len() && t[i].text != "}" {
                    i = use_tree(t, i, &path, out);
                    if t.get(i).is_some_and(|t| t.text == ",") {
                        i += 1;
                    }
                }
                return i + 1;
            }
            "," | "}" | ";" => break,
            "as" => i += 2,
            "::" => i += 1,
            _ => {
                path.push(t[i].text.clone());
                i += 1;
            }
        }
    }
    out.push((line, path));
    i
}

/// Token ranges of inline modules under `#[cfg(test)]`.
fn test_modules(t: &[Token]) -> Vec<std::ops::Range<usize>> {
    let mut out = Vec::new();
    let mut i = 0;
    while i < t.len() {
        if let Some(after) = cfg_test_at(t, i) {
            let mut at = after;
            while at < t.len() && t[at].text != "{" && t[at].text != ";" {
                at += 1;
            }
            if t[after..at.min(t.len())].iter().any(|t| t.text == "mod") && t.get(at).is_some_and(|t| t.text == "{") {
                let mut depth = 0;
                while at < t.len() {
                    match t[at].text.as_str() {
                        "{" => depth += 1,
                        "}" => depth -= 1,
                        _ => {}
                    }
                    at += 1;
                    if depth == 0 {
                        break;
                    }
                }
                out.push(i..at);
                i = at;
                continue;
            }
        }
        i += 1;
    }
    out
}

/// The token after `#[cfg(test)]`, if it stands here.
fn cfg_test_at(t: &[Token], i: usize) -> Option<usize> {
    let want = ["#", "[", "cfg", "(", "test", ")", "]"];
    (t.len() >= i + want.len() && want.iter().enumerate().all(|(k, w)| t[i + k].text == *w)).then_some(i + want.len())
}

// ---------------------------------------------------------------------------------------------------------------------
// The rules.

fn layer(folder: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == folder).map(|(_, n)| *n)
}

/// `src/a/b.rs` imports only what lies below `a`.
fn arrows(path: &str, text: &str) -> Vec<String> {
    let parts: Vec<&str> = path.split('/').collect();
    let file = *parts.last().unwrap();
    if path == "lib.rs" {
        return Vec::new();
    }
    let folder = if path == "main.rs" { "main.rs" } else { parts[0].trim_end_matches(".rs") };
    let mut found = Vec::new();
    if path != "main.rs" && layer(folder).is_none() {
        found.push(format!("{path}: '{folder}' is no layer of DESIGN §3"));
        return found;
    }
    // Modules from the crate's root down to this file.
    let depth = if file == "mod.rs" { parts.len() - 1 } else { parts.len() };
    for m in mentions(text) {
        let supers = m.segments.iter().take_while(|s| *s == "super").count();
        let target = match m.segments[0].as_str() {
            "crate" | "strongroom" => m.segments.get(1),
            "super" if supers >= depth + m.inline_modules => m.segments.get(supers),
            _ => continue,
        };
        let Some(target) = target else {
            // `pub(crate)`, `pub(super)`: a visibility, not an import.
            continue;
        };
        if target == folder {
            continue;
        }
        let allowed = match (path, layer(folder), layer(target)) {
            ("main.rs", _, _) => target == "cli",
            (_, Some(here), Some(there)) => there < here,
            // A name at the root that is no layer (a re-export, a glob): it hides where the arrow points.
            _ => false,
        };
        if !allowed {
            found.push(format!("{path}:{}: '{folder}' may not import '{target}'", m.line));
        }
    }
    found
}

fn holds(segments: &[String], betrayed_by: &str) -> bool {
    let want: Vec<&str> = betrayed_by.split("::").collect();
    match want[..] {
        // A crate or a macro: only where the path begins, so that a field or method of that name is no crime.
        [one] => segments[0] == one && (one.ends_with('!') || segments.len() > 1),
        _ => segments.windows(want.len()).any(|w| w.iter().zip(&want).all(|(a, b)| a == b)),
    }
}

fn lies_in(path: &str, place: &str) -> bool {
    path == place || (place.ends_with('/') && path.starts_with(place))
}

/// A power is used only in its owner's folder. Returns (power, betraying path, finding).
fn powers(path: &str, text: &str) -> Vec<(&'static str, &'static str, String)> {
    let mut found = Vec::new();
    let imports: Vec<Mention> = mentions(text).into_iter().filter(|m| !m.in_test).collect();
    for power in &POWERS {
        if power.owners.iter().any(|o| lies_in(path, o)) {
            continue;
        }
        for by in power.betrayed_by {
            for m in imports.iter().filter(|m| holds(&m.segments, by) || bare_import(text, m, by)) {
                let owners = power.owners.join(", ");
                found.push((
                    power.what,
                    *by,
                    format!("{path}:{}: {by} is {}, which only {owners} may use", m.line, power.what),
                ));
            }
        }
    }
    found
}

/// `use redb;` has one segment, as a local variable has; the line tells them apart.
fn bare_import(text: &str, m: &Mention, by: &str) -> bool {
    m.segments.len() == 1
        && m.segments[0] == by
        && text.lines().nth(m.line - 1).is_some_and(|l| l.trim_start().trim_start_matches("pub ").starts_with("use "))
}

/// The file says what it is, what it promises and who relies on it.
fn introduction(path: &str, text: &str) -> Vec<String> {
    let doc: Vec<&str> = text.lines().take_while(|l| l.starts_with("//!")).collect();
    let mut found = Vec::new();
    if doc.len() < DOC_LINES_MIN && path != "main.rs" {
        found.push(format!("{path}: its //! doc has {} lines, fewer than {DOC_LINES_MIN}", doc.len()));
    }
    if !DOORS.contains(&path) {
        let doc = doc.join("\n");
        for must in ["Promise", "Called by"] {
            if !doc.contains(must) {
                found.push(format!("{path}: its //! doc has no '{must}'"));
            }
        }
    }
    if path == "main.rs" && doc.is_empty() {
        found.push(format!("{path}: has no //! doc"));
    }
    found
}

/// Lines that hold code, test modules left out.
fn code_lines(text: &str) -> usize {
    let t = tokens(text);
    let tests = test_modules(&t);
    let lines: BTreeSet<usize> =
        t.iter().enumerate().filter(|(i, _)| !tests.iter().any(|r| r.contains(i))).map(|(_, t)| t.line).collect();
    lines.len()
}

fn length(path: &str, text: &str) -> Vec<String> {
    match code_lines(text) {
        n if n > CODE_LINES_MAX => vec![format!("{path}: {n} lines of code, more than {CODE_LINES_MAX}: split it")],
        _ => Vec::new(),
    }
}

/// No work is left undone in the source.
fn leftovers(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        if let Some(w) = words.find(|w| ["FIXME", "XXX", "TODO"].contains(w)) {
            found.push(format!("{path}:{}: {w}", n + 1));
        }
    }
    for m in mentions(text) {
        if let Some(w) = m.segments.last().filter(|s| ["todo!", "unimplemented!"].contains(&s.as_str())) {
            found.push(format!("{path}:{}: {w}", m.line));
        }
    }
    found
}

// ---------------------------------------------------------------------------------------------------------------------
// The source as it is.

/// (path below `src/`, text, whether the file exists for tests only).
fn source() -> Vec<(String, String, bool)> {
    // Asked for at run time, so that a built test can be pointed at another tree.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let root = Path::new(&package).join("src");
    let (mut dirs, mut files) = (vec![root.clone()], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    assert!(files.len() > 20, "the source was not found");
    let for_tests: BTreeSet<String> = files.iter().flat_map(|(path, text)| test_files(path, text)).collect();
    let is_test = |p: &str| {
        for_tests.contains(p) || for_tests.iter().any(|t| p.starts_with(&format!("{}/", t.trim_end_matches(".rs"))))
    };
    files.into_iter().map(|(p, t)| (p.clone(), t, is_test(&p))).collect()
}

/// Files that `#[cfg(test)] mod x;` names.
fn test_files(path: &str, text: &str) -> Vec<String> {
    let t = tokens(text);
    let mut out = Vec::new();
    for i in 0..t.len() {
        if let Some(at) = cfg_test_at(&t, i)
            && let Some(m) = (at..(at + 5).min(t.len())).find(|&k| t[k].text == "mod")
            && t.get(m + 2).is_some_and(|t| t.text == ";")
        {
            let folder = match path.rsplit_once('/') {
                Some((dir, "mod.rs")) => format!("{dir}/"),
                None if path == "lib.rs" => String::new(),
                _ => format!("{}/", path.trim_end_matches(".rs")),
            };
            out.push(format!("{folder}{}.rs", t[m + 1].text));
        }
    }
    out
}

fn refuse(found: &[String]) {
    let mut all = String::new();
    for f in found {
        let _ = writeln!(all, "  {f}");
    }
    assert!(found.is_empty(), "\n{all}");
}

#[test]
fn the_source_keeps_the_arrows() {
    refuse(&source().iter().flat_map(|(p, t, _)| arrows(p, t)).collect::<Vec<_>>());
}

#[test]
fn the_source_keeps_powers_with_their_owners() {
    let mut used = BTreeSet::new();
    let mut found = Vec::new();
    for (path, text, _) in source().iter().filter(|(_, _, test)| !test) {
        for (power, by, what) in powers(path, text) {
            match EXCEPTIONS.iter().position(|(p, place, b, _)| *p == power && *b == by && lies_in(path, place)) {
                Some(i) => drop(used.insert(i)),
                None => found.push(what),
            }
        }
    }
    for (i, (_, file, by, reason)) in EXCEPTIONS.iter().enumerate() {
        if !used.contains(&i) {
            found.push(format!("{file}: no longer uses {by}; take its exception away ({reason})"));
        }
    }
    refuse(&found);
}

#[test]
fn every_file_introduces_itself() {
    let files = source();
    refuse(&files.iter().filter(|f| !f.2).flat_map(|(p, t, _)| introduction(p, t)).collect::<Vec<_>>());
}

#[test]
fn no_file_is_too_long() {
    let files = source();
    refuse(&files.iter().filter(|f| !f.2).flat_map(|(p, t, _)| length(p, t)).collect::<Vec<_>>());
}

#[test]
fn no_work_is_left_undone() {
    refuse(&source().iter().flat_map(|(p, t, _)| leftovers(p, t)).collect::<Vec<_>>());
}

// ---------------------------------------------------------------------------------------------------------------------
// Each rule, on a planted violation.

#[test]
fn an_import_from_above_is_found() {
    for (path, text) in [
        ("seal/a.rs", "use crate::vault::Vault;"),
        ("seal/a.rs", "use crate::{base::id::Ino, vault::Vault};"),
        ("seal/a.rs", "fn f() { crate::fs::go(); }"),
        ("seal/a.rs", "use crate::backing::Backing;"),
        ("confine/a.rs", "use crate::backing::Backing;"),
        ("index/mod.rs", "use super::segment::Segment;"),
        ("index/a.rs", "use super::super::segment::Segment;"),
        ("index/a.rs", "mod tests { use super::super::super::segment::Segment; }"),
        ("base/a.rs", "use crate::format::Wire;"),
        ("fs/mod.rs", "use crate::check;"),
        ("fs/a.rs", "use crate::*;"),
        ("fuse/a.rs", "use crate::fs::{self, a::{b, c}}; use crate::{base::{id, limits}, cli};"),
        ("main.rs", "fn main() { strongroom::vault::open(); }"),
        ("tools/a.rs", ""),
    ] {
        assert_eq!(arrows(path, text).len(), 1, "{path}: {text}");
    }
}

#[test]
fn an_import_from_below_is_let_pass() {
    for (path, text) in [
        ("format/a.rs", "use crate::base::id::Ino;"),
        ("seal/a.rs", "use super::b; use crate::seal::c; pub(crate) fn f() {} // use crate::vault"),
        ("vault/a.rs", "use crate::{base::{id, limits}, segment, index as catalogue};"),
        ("vault/mod.rs", "mod tests { use super::*; }"),
        ("vault/log/mod.rs", "use super::state; use super::super::vault::x;"),
        ("vault/a.rs", "#[cfg(test)] mod tests { use super::super::state; }"),
        ("fs/a.rs", "const MESSAGE: &str = \"use crate::cli;\"; /* crate::fuse */"),
        ("main.rs", "fn main() { strongroom::cli::main() }"),
        ("lib.rs", "pub mod vault;"),
    ] {
        assert_eq!(arrows(path, text), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn a_power_outside_its_owner_is_found() {
    for (path, text) in [
        ("vault/a.rs", "use redb::Database;"),
        ("vault/a.rs", "use redb;"),
        ("vault/a.rs", "fn f() { let x = aws_lc_rs::rand::fill(); }"),
        ("index/a.rs", "use zstd::bulk;"),
        ("fs/a.rs", "use fuser::FileAttr;"),
        ("vault/a.rs", "fn f() { println!(\"x\"); }"),
        ("vault/a.rs", "fn f() { eprintln!(\"x\") }"),
        ("vault/a.rs", "use std::{fs, io};"),
        ("vault/a.rs", "use std::{io, fs::File};"),
        ("vault/a.rs", "fn f() { unsafe { libc::fsync(1) }; }"),
        ("vault/a.rs", "fn f() { let t = std::time::Instant::now(); }"),
        ("base/id.rs", "use std::time::SystemTime; fn f() { SystemTime::now(); }"),
        ("seal/a.rs", "fn f() { getrandom::fill(&mut x); }"),
        ("cli/a.rs", "use landlock::Ruleset;"),
        ("cli/a.rs", "fn f() { unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }; }"),
    ] {
        assert!(!powers(path, text).is_empty(), "{path}: {text}");
    }
}

#[test]
fn a_power_with_its_owner_is_let_pass() {
    for (path, text) in [
        ("index/a.rs", "use redb::Database;"),
        ("seal/a.rs", "use zstd::bulk; use chacha20poly1305::KeyInit;"),
        ("cli/a.rs", "fn f() { println!(\"x\"); std::fs::read(p); }"),
        ("main.rs", "fn f() { eprintln!(\"x\"); }"),
        ("base/world.rs", "fn f() { Instant::now(); getrandom::fill(&mut b); }"),
        ("vault/a.rs", "fn f() { let zstd = 1; self.argon2(zstd); Codec::zstd(); libc::EINVAL; world.now(); }"),
        ("vault/a.rs", "use crate::fs_word; // println!(std::fs)\nconst A: &str = \"redb::x\";"),
        ("vault/a.rs", "#[cfg(test)]\nmod tests { use std::fs; }"),
        ("vault/a.rs", "use std::time::Duration; fn f<'a>(x: &'a str) -> char { '\"' }"),
    ] {
        let found: Vec<_> = powers(path, text).into_iter().map(|f| f.2).collect();
        assert_eq!(found, Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn a_file_without_introduction_is_found() {
    let whole = "//! What.\n//!\n//! Promise: x. Called by: y.\nfn f() {}";
    assert_eq!(introduction("vault/a.rs", whole), Vec::<String>::new());
    for text in [
        "fn f() {}",
        "//! What. Promise: x. Called by: y.",
        "//! What.\n//!\n//! Called by: y.",
        "//! What.\n//!\n//! Promise: x.",
        "use a;\n//! What.\n//! Promise: x.\n//! Called by: y.",
    ] {
        assert!(!introduction("vault/mod.rs", text).is_empty(), "{text}");
    }
}

#[test]
fn a_long_file_is_found_and_its_tests_do_not_count() {
    let line = "fn f() {}\n";
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", line.repeat(400));
    let comments = "// why\n\n".repeat(400);
    assert_eq!(length("a/b.rs", &format!("{comments}{}{tests}", line.repeat(500))), Vec::<String>::new());
    assert_eq!(length("a/b.rs", &format!("{}{tests}", line.repeat(501))).len(), 1);
}

#[test]
fn undone_work_is_found() {
    for text in
        ["// FIXME later", "//! XXX", "let a = 1; // TODO: b", "fn f() { todo!() }", "fn f() { std::unimplemented!() }"]
    {
        assert_eq!(leftovers("a/b.rs", text).len(), 1, "{text}");
    }
    assert_eq!(leftovers("a/b.rs", "// TODOS and xxx; a `todo!` in a message: \"todo!()\""), Vec::<String>::new());
}

#[test]
fn a_test_only_file_is_known_by_its_declaration() {
    assert_eq!(test_files("vault/mod.rs", "#[cfg(test)]\nmod model;\nmod real;"), ["vault/model.rs"]);
    assert_eq!(test_files("fs/file.rs", "#[cfg(test)]\nmod tests;"), ["fs/file/tests.rs"]);
}
