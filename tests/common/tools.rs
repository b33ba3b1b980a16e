//! Programs from outside that the tests run: where they are, and one clear sentence where they are not.
//!
//! Promise: a tool that is missing fails the test that needs it, by name; no test passes because something was not there.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::path::{Path, PathBuf};

/// A program that `.ci/setup` installs with cargo, from where that puts it, else from the `PATH`.
pub fn cargo_tool(name: &str) -> PathBuf {
    let ours = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("tools/bin").join(name);
    if ours.is_file() { ours } else { on_path(name) }
}

/// A program of the system.
pub fn on_path(name: &str) -> PathBuf {
    find(name).unwrap_or_else(|| panic!("there is no {name}: .ci/setup installs what these tests need"))
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Daemons' and root's tools are not on every user's path.
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// The directory of the newest PostgreSQL's programs, which Debian keeps off the `PATH`.
pub fn postgres_programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|e| Some((e.file_name().to_str()?.parse::<u32>().ok()?, e.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").is_file())
        .max();
    newest.map(|(_, bin)| bin).unwrap_or_else(|| panic!("there is no PostgreSQL: .ci/setup installs it"))
}
