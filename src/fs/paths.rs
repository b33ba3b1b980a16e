//! From inodes to paths, for people: what could not be saved is told by name.
//!
//! Promise: one pass over all names, memory by the number of directories; of a file with several names, one of them.
//! Called by: `cli`, at the end of a vault. On failure: what cannot be named has no path.

use crate::base::id::{Ino, ROOT_INO};
use crate::format::inode::NameEntry;
use crate::format::key;
use crate::vault::Vault;
use std::collections::{HashMap, HashSet};
use std::fmt;

/// Names looked at in one go.
const PAGE: usize = 512;
/// Ends the text about refused bytes.
const REFUSED: &str = " were refused";
/// Ends the text for a file that has no path.
const NAMELESS: &str = ", which has no name";
/// The type of a directory, as names carry it.
const DIRECTORY: u8 = (libc::S_IFDIR >> 12) as u8;

/// The path of each inode, from the root, with a leading `/`.
pub fn paths_of(vault: &Vault, inodes: &[Ino]) -> Vec<(Ino, Option<Vec<u8>>)> {
    let wanted: HashSet<Ino> = inodes.iter().copied().collect();
    let mut homes: HashMap<Ino, (Ino, Vec<u8>)> = HashMap::new();
    let mut from = vec![key::NAME];
    if !wanted.is_empty() {
        while let Ok(page) = vault.scan(&[key::NAME], &from, PAGE) {
            for (name, value) in &page {
                if let (Ok((_, dir, name)), Ok(entry)) = (key::split(name), NameEntry::decode(value))
                    && (entry.kind == DIRECTORY || wanted.contains(&entry.ino))
                {
                    homes.insert(entry.ino, (Ino(dir), name.to_vec()));
                }
            }
            match page.into_iter().nth(PAGE - 1) {
                Some((last, _)) => from = [&last[..], &[0]].concat(),
                None => break,
            }
        }
    }
    inodes.iter().map(|&ino| (ino, path(&homes, ino))).collect()
}

/// A file that lacks bytes which were refused, as a person is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedFile {
    /// Its number.
    pub ino: Ino,
    /// Its path; `None` if it has none, or its names do not read.
    pub path: Option<Vec<u8>>,
    /// How many bytes it lacks.
    pub bytes: u64,
}

/// The files of `Vault::refused`, with their paths.
pub fn refused_files(vault: &Vault) -> Vec<RefusedFile> {
    with_paths(vault, &vault.refused())
}

/// Adds the paths to such a list.
pub fn with_paths(vault: &Vault, files: &[(Ino, u64)]) -> Vec<RefusedFile> {
    let inodes: Vec<Ino> = files.iter().map(|file| file.0).collect();
    let named = paths_of(vault, &inodes).into_iter().zip(files);
    named.map(|((ino, path), &(_, bytes))| RefusedFile { ino, path, bytes }).collect()
}

/// The one wording for it, in `unsaved`, in the error list and at the end of a mount.
impl fmt::Display for RefusedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{} (inode {})", printable(path), self.ino)?,
            None => write!(f, "{}", nameless(self.ino))?,
        }
        write!(f, ": {} bytes{REFUSED}", self.bytes)
    }
}

impl RefusedFile {
    /// Reads such a text back.
    #[must_use]
    pub fn read(text: &str) -> Option<RefusedFile> {
        let (file, bytes) = text.strip_suffix(REFUSED)?.strip_suffix(" bytes")?.rsplit_once(": ")?;
        let bytes = bytes.parse().ok()?;
        let (path, number) = match file.rsplit_once(" (inode ") {
            Some((path, number)) => (Some(unprintable(path)?), number.strip_suffix(')')?),
            None => (None, file.strip_prefix("inode ")?.strip_suffix(NAMELESS)?),
        };
        Some(RefusedFile { ino: Ino(number.parse().ok()?), path, bytes })
    }
}

/// A file by its path, or by its number if it has none.
#[must_use]
pub fn named(ino: Ino, path: Option<&[u8]>) -> String {
    path.map_or_else(|| nameless(ino), printable)
}

fn nameless(ino: Ino) -> String {
    format!("inode {ino}{NAMELESS}")
}

fn path(homes: &HashMap<Ino, (Ino, Vec<u8>)>, ino: Ino) -> Option<Vec<u8>> {
    let mut parts = Vec::new();
    let mut at = ino;
    while at != ROOT_INO {
        let (dir, name) = homes.get(&at)?;
        parts.push(name);
        // More steps than names: a cycle.
        if parts.len() > homes.len() {
            return None;
        }
        at = *dir;
    }
    Some(parts.iter().rev().flat_map(|part| [b"/", &part[..]].concat()).collect())
}

/// A path as text on one line: what is not a printable character is escaped.
#[must_use]
pub fn printable(path: &[u8]) -> String {
    let mut text = String::new();
    for part in path.utf8_chunks() {
        for c in part.valid().chars() {
            if c.is_control() || c == '\\' { text.extend(c.escape_default()) } else { text.push(c) }
        }
        part.invalid().iter().for_each(|b| text.push_str(&format!("\\x{b:02x}")));
    }
    text
}

/// The path that `printable` made a text of; `None` if it made no such text.
fn unprintable(text: &str) -> Option<Vec<u8>> {
    let (mut path, mut rest) = (Vec::new(), text);
    while let Some((plain, escape)) = rest.split_once('\\') {
        path.extend_from_slice(plain.as_bytes());
        let mut after = escape.chars();
        let escaped = match after.next()? {
            'n' => b'\n',
            't' => b'\t',
            'r' => b'\r',
            '\\' => b'\\',
            'x' => {
                let (digits, left) = after.as_str().split_at_checked(2)?;
                after = left.chars();
                u8::from_str_radix(digits, 16).ok()?
            }
            'u' => {
                let (digits, left) = after.as_str().strip_prefix('{')?.split_once('}')?;
                let c = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
                path.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = left;
                continue;
            }
            _ => return None,
        };
        path.push(escaped);
        rest = after.as_str();
    }
    path.extend_from_slice(rest.as_bytes());
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_up_to_the_root_and_not_round_in_circles() {
        let home = |ino, dir, name: &[u8]| (Ino(ino), (Ino(dir), name.to_vec()));
        let homes = HashMap::from([home(5, 1, b"a"), home(6, 5, b"b\n"), home(7, 8, b"x"), home(8, 7, b"y")]);
        assert_eq!(path(&homes, Ino(6)).as_deref(), Some(&b"/a/b\n"[..]));
        assert_eq!((path(&homes, Ino(7)), path(&homes, Ino(9))), (None, None));
        assert_eq!(printable(b"/a/b\n\xff"), "/a/b\\n\\xff");
    }

    #[test]
    fn a_refused_file_is_read_back_whatever_its_path_is() {
        let read = |path: Option<&[u8]>| {
            let file = RefusedFile { ino: Ino(7), path: path.map(<[u8]>::to_vec), bytes: 5 };
            assert_eq!(RefusedFile::read(&file.to_string()), Some(file.clone()), "{file}");
            file.to_string()
        };
        assert_eq!(read(Some(b"/a b")), "/a b (inode 7): 5 bytes were refused");
        assert_eq!(read(None), "inode 7, which has no name: 5 bytes were refused");
        for path in ["/a\\n\n\t\r\x7f\u{85}'\"ü", "/a (inode 9): 3 bytes were refused"] {
            read(Some(path.as_bytes()));
        }
        read(Some(b"/\xff\xc3\x01"));
        for line in ["/a", "/a (inode 7)", "inode 7, which has no name", "/\\q (inode 7): 5 bytes were refused"] {
            assert_eq!(RefusedFile::read(line), None, "{line}");
        }
    }
}
