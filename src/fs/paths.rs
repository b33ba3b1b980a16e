//! From inodes to paths, for people: what could not be saved is told by name.
//!
//! Promise: one pass over all names, memory by the number of directories; of a file with several names, one of them.
//! Called by: `cli`, at the end of a vault. On failure: what cannot be named has no path.

use crate::base::id::{Ino, ROOT_INO};
use crate::format::inode::NameEntry;
use crate::format::key;
use crate::vault::Vault;
use std::collections::{HashMap, HashSet};

/// Names looked at in one go.
const PAGE: usize = 512;
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

impl RefusedFile {
    /// `/path`, or what stands for it.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "a file without a name".to_owned(), |path| printable(path))
    }
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
}
