//! The mount as upper and lower directory of overlayfs, with the options that container engines turn on.
//!
//! Method: the same work on an overlay in the mount and on one in ext4; what every path is must be the same, at once and
//! after the overlay was mounted again.

use crate::common::disk::Disk;
use crate::common::{TestVault, needs_root, output, run};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const OPTIONS: [&str; 7] = [
    "",
    "redirect_dir=on",
    "metacopy=on,redirect_dir=on",
    "index=on,nfs_export=on",
    "xino=on",
    "userxattr",
    "volatile",
];

/// An overlay of the directories `lower`, `upper` and `work` beside it; unmounted when dropped.
struct Overlay {
    base: PathBuf,
    options: &'static str,
}

impl Overlay {
    fn mount(base: &Path, options: &'static str) -> Option<Overlay> {
        let mut all = "lowerdir=lower,upperdir=upper,workdir=work".to_owned();
        if !options.is_empty() {
            all = format!("{all},{options}");
        }
        let mut c = Command::new("mount");
        let out = output(c.args(["-t", "overlay", "-o", &all, "none", "merged"]).current_dir(base));
        out.status.success().then(|| Overlay { base: base.to_owned(), options })
    }

    fn again(self) -> Option<Overlay> {
        let (base, options) = (self.base.clone(), self.options);
        drop(self);
        // A volatile overlay refuses to be mounted a second time, until whoever knows better takes this away.
        let _ = fs::remove_dir_all(base.join("work/work/incompat"));
        Overlay::mount(&base, options)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.join("merged").join(name)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.base.join("merged")).stderr(Stdio::null()).status();
    }
}

/// A lower layer with a file of two names, an attribute, and a tree.
fn make_layers(base: &Path) {
    for dir in ["lower/tree/inner", "upper", "work", "merged"] {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    for (name, text) in [("file", "low"), ("tree/one", "low one"), ("tree/inner/two", "low two")] {
        fs::write(base.join("lower").join(name), text).unwrap();
    }
    fs::hard_link(base.join("lower/file"), base.join("lower/second")).unwrap();
    fs::set_permissions(base.join("lower/second"), fs::Permissions::from_mode(0o751)).unwrap();
    run(Command::new("setfattr").args(["-n", "user.colour", "-v", "green"]).arg(base.join("lower/file")));
}

/// What a container does to its files; gives what was answered where filesystems may differ.
fn work(o: &Overlay) -> Vec<String> {
    let mut said = Vec::new();
    let mut tell = |what: &str, answer: std::io::Result<()>| said.push(format!("{what}: {answer:?}"));
    File::options().append(true).open(o.path("file")).unwrap().write_all(b" and more").unwrap();
    tell("chmod", fs::set_permissions(o.path("tree/one"), fs::Permissions::from_mode(0o600)));
    let moved = fs::rename(o.path("tree"), o.path("renamed"));
    tell("rename of a lower directory", moved.as_ref().copied().map_err(|e| e.kind().into()));
    if moved.is_err() {
        run(Command::new("mv").arg(o.path("tree")).arg(o.path("renamed")));
    }
    // A new directory in the place of a lower one hides what that held.
    fs::create_dir(o.path("tree")).unwrap();
    fs::write(o.path("tree/new"), "new").unwrap();
    tell("unlink of one of two names", fs::remove_file(o.path("second")));
    tell("link", fs::hard_link(o.path("file"), o.path("link")));
    tell("rename", fs::rename(o.path("link"), o.path("third")));
    run(Command::new("touch").args(["-d", "2001-02-03 04:05:06"]).arg(o.path("renamed/one")));
    let set = output(Command::new("setfattr").args(["-n", "user.size", "-v", "1"]).arg(o.path("renamed")));
    tell("setfattr of a directory", if set.status.success() { Ok(()) } else { Err(std::io::ErrorKind::Other.into()) });
    let mut nameless = File::options().create(true).read(true).write(true).truncate(true).open(o.path("gone")).unwrap();
    nameless.write_all(b"abc").unwrap();
    tell("unlink of an open file", fs::remove_file(o.path("gone")));
    nameless.write_all(b"d").unwrap();
    nameless.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    nameless.read_to_string(&mut text).unwrap();
    said.push(format!("an open file without a name holds {text}"));
    // A file whose data is still in the lower layer is written through a new handle.
    File::options().write(true).open(o.path("renamed/inner/two")).unwrap().write_all_at(b"L", 0).unwrap();
    said
}

/// Every path with its type, mode, links, length, time of change where it was set, attributes and content.
fn picture(o: &Overlay) -> Vec<String> {
    let root = o.base.join("merged");
    let mut all = Vec::new();
    for path in crate::common::walk(&root).unwrap() {
        let m = root.join(&path).symlink_metadata().unwrap();
        let mut line = format!("{} mode {:o}", path.display(), m.mode());
        if m.is_file() {
            let text = fs::read_to_string(root.join(&path)).unwrap();
            line += &format!(" links {} length {}: {text}", m.nlink(), m.len());
        }
        if path.ends_with("one") {
            line += &format!(" changed {}", m.mtime());
        }
        let attributes = run(Command::new("getfattr").args(["-d", "--absolute-names"]).arg(root.join(&path)));
        line += &attributes.lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>().join(" ");
        all.push(line);
    }
    all
}

/// The whole story of one overlay, or that its options are refused.
fn story(place: &Path, options: &'static str) -> Vec<String> {
    let base = place.join(if options.is_empty() { "none" } else { options });
    make_layers(&base);
    let Some(overlay) = Overlay::mount(&base, options) else { return vec!["refused".into()] };
    let mut all = work(&overlay);
    let before = picture(&overlay);
    all.extend(before.clone());
    let overlay = overlay.again().expect("an overlay is mounted a second time");
    assert_eq!(picture(&overlay), before, "'{options}' in {}, mounted again", place.display());
    all
}

#[test]
fn overlays_of_containers_are_as_on_ext4() {
    needs_root("mount overlays");
    let (v, disk) = (TestVault::mounted(), Disk::ext4(64));
    let mut worked = 0;
    for options in OPTIONS {
        let (want, here) = (story(&disk.at, options), story(&v.mnt, options));
        assert_eq!(here, want, "an overlay with '{options}'");
        worked += usize::from(here.len() > 1);
    }
    assert!(worked >= 3, "only {worked} kinds of overlay could be mounted here");
    v.checked_remount();
    let kept = OPTIONS.iter().filter(|o| v.path(if o.is_empty() { "none" } else { o }).join("upper/renamed").exists());
    assert_eq!(kept.count(), worked, "upper layers after a remount of the vault");
}
