//! The compact table of all inodes: what they say of themselves, and what was counted about them.
//!
//! Promise: some 60 bytes per inode, found in logarithmic time. Called by: the rest of `check`. Cannot fail.

use crate::base::id::Ino;

/// What is kept of an inode.
#[derive(Debug, Clone, Copy, Default)]
pub struct Node {
    /// The inode.
    pub ino: Ino,
    /// Its size as stored.
    pub size: u64,
    /// Its parent as stored; a directory's.
    pub parent: Ino,
    /// The directory of the first name found; 0 while there is none.
    pub home: Ino,
    /// Names found in it; a directory's.
    pub entries: u64,
    /// The quota tree whose number it carries.
    pub tree: u32,
    /// Its links as stored.
    pub nlink: u32,
    /// Names found that lead to it.
    pub names: u32,
    /// Subdirectories found in it.
    pub subdirs: u32,
    /// File type bits, shifted down by 12; 0 for attributes that make no sense.
    pub kind: u8,
    /// Marked for removal.
    pub orphan: bool,
    /// A symbolic link's target was found.
    pub has_target: bool,
    /// Extents were found.
    pub has_extents: bool,
    /// An extent is placed so that reading it would make no sense.
    pub misplaced: bool,
    /// Where the walk towards the root stands.
    pub walk: Walk,
}

/// Of a directory, while ancestors are followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Walk {
    /// Not looked at.
    #[default]
    No,
    /// On the way that is being followed.
    Now,
    /// Followed to its end before.
    Done,
}

/// File types as names carry them.
pub const DIRECTORY: u8 = (libc::S_IFDIR >> 12) as u8;
/// Regular file.
pub const REGULAR: u8 = (libc::S_IFREG >> 12) as u8;
/// Symbolic link.
pub const LINK: u8 = (libc::S_IFLNK >> 12) as u8;

/// The table, ascending by inode.
#[derive(Debug, Default)]
pub struct Nodes(Vec<Node>);

impl Nodes {
    /// Adds an inode, greater than all before.
    pub fn push(&mut self, node: Node) {
        debug_assert!(self.0.last().is_none_or(|last| last.ino < node.ino), "keys are scanned in order");
        self.0.push(node);
    }
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
    /// The greatest.
    pub fn last(&self) -> Option<&Node> {
        self.0.last()
    }
    /// All, ascending.
    pub fn all(&self) -> &[Node] {
        &self.0
    }
    /// The place of an inode in the table.
    pub fn position(&self, ino: Ino) -> Option<usize> {
        self.0.binary_search_by_key(&ino, |n| n.ino).ok()
    }
    /// The inode at a place.
    pub fn at(&mut self, position: usize) -> &mut Node {
        &mut self.0[position]
    }
    /// An inode, if it is there.
    pub fn get(&self, ino: Ino) -> Option<&Node> {
        self.position(ino).map(|i| &self.0[i])
    }
    /// The same, to change what was counted.
    pub fn get_mut(&mut self, ino: Ino) -> Option<&mut Node> {
        self.position(ino).map(|i| &mut self.0[i])
    }
}
