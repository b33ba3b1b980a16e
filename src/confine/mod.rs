//! Takes from this process what serving a mount does not need: rights it would have only for whoever takes it over.
//!
//! Promise: after `confine`, this thread and every thread that it starts (1) never gain rights by running a program,
//! (2) hold no capability but one that was asked to be kept, (3) open no file but below the paths that were named, neither
//! reach the network nor signal others (`files`), and (4) make only the system calls of one list (`calls`). Nothing takes this back.
//! What the kernel is too old for is left out, and the report says so; what was named part by part is demanded.
//! Why on one thread: capabilities, Landlock and seccomp bind the thread that asks and those that it starts later. So it is
//! done before there is another, and refused when there is.
//! Called by: `cli::mount`, once, after the key was derived and before the vault is opened. On failure: a `Fault` names the
//! part; what was done until then stays.

mod calls;
mod capabilities;
mod files;

pub use files::{Access, Allowed};

use std::fmt;
use std::io;
use std::str::FromStr;

/// The parts of a confinement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Give up all capabilities.
    pub capabilities: bool,
    /// Open no files but those below the paths named.
    pub landlock: bool,
    /// Make no system calls but those of the list.
    pub seccomp: bool,
}

/// Which parts are wanted, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The parts.
    pub parts: Parts,
    /// Whether to go without rather not at all: else what this kernel has.
    pub demanded: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Wanted { parts: Parts { capabilities: true, landlock: true, seccomp: true }, demanded: false }
    }
}

impl Wanted {
    /// Nothing.
    pub const OFF: Wanted =
        Wanted { parts: Parts { capabilities: false, landlock: false, seccomp: false }, demanded: false };
}

impl FromStr for Wanted {
    type Err = String;

    /// `auto`, `off`, or parts with `+` between them.
    fn from_str(text: &str) -> Result<Wanted, String> {
        match text {
            "auto" => return Ok(Wanted::default()),
            "off" => return Ok(Wanted::OFF),
            _ => {}
        }
        let mut wanted = Wanted { demanded: true, ..Wanted::OFF };
        for part in text.split('+') {
            match part {
                "caps" => wanted.parts.capabilities = true,
                "landlock" => wanted.parts.landlock = true,
                "seccomp" => wanted.parts.seccomp = true,
                _ => return Err(format!("'{text}' is neither auto nor off nor some of caps+landlock+seccomp")),
            }
        }
        Ok(wanted)
    }
}

/// What is to be left of this process' rights.
#[derive(Debug, Clone, Default)]
pub struct Confinement {
    /// Which parts.
    pub wanted: Wanted,
    /// What may still be opened.
    pub files: Vec<Allowed>,
    /// Keep the right to pass over permissions: the files that are named are not all this user's.
    pub keep_dac_override: bool,
}

/// What became of each part, to be shown: `on`, or why not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Names and words.
    pub rows: Vec<(&'static str, String)>,
}

/// A part that was demanded, or began to be done, and could not be.
#[derive(Debug)]
pub struct Fault {
    part: &'static str,
    why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the sandbox could not be had: {}: {}", self.part, self.why)
    }
}

impl std::error::Error for Fault {}

/// Why a part is not there.
enum Missing {
    /// The kernel does not have it.
    Unknown(String),
    /// It should have been, and was not.
    Failed(String),
}

impl Missing {
    fn failed(what: &str) -> Missing {
        Missing::Failed(format!("{what}: {}", io::Error::last_os_error()))
    }
}

/// Confines this process; there must be one thread.
pub fn confine(to: &Confinement) -> Result<Report, Fault> {
    let parts = to.wanted.parts;
    let mut report = Report::default();
    if parts == Wanted::OFF.parts {
        report.rows.push(("sandbox", "off: asked for".to_owned()));
        return Ok(report);
    }
    alone()?;
    // In this order: each step takes something that those before it needed.
    let steps: [(&'static str, bool, &dyn Fn() -> Result<String, Missing>); 4] = [
        ("sandbox_no_new_privs", true, &no_new_privs),
        ("sandbox_capabilities", parts.capabilities, &|| capabilities::drop_all(to.keep_dac_override)),
        ("sandbox_landlock", parts.landlock, &|| files::restrict(&to.files)),
        ("sandbox_seccomp", parts.seccomp, &calls::restrict),
    ];
    for (part, wanted, step) in steps {
        let said = match wanted.then(step) {
            None => "off: not asked for".to_owned(),
            Some(Ok(said)) => said,
            Some(Err(Missing::Unknown(why))) if !to.wanted.demanded => {
                log::warn!("{part}: {why}: the daemon goes on without");
                format!("off: {why}")
            }
            Some(Err(Missing::Unknown(why) | Missing::Failed(why))) => return Err(Fault { part, why }),
        };
        report.rows.push((part, said));
    }
    Ok(report)
}

/// A thread that runs already would keep all that it has.
fn alone() -> Result<(), Fault> {
    let fault = |why| Fault { part: "threads", why };
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|e| fault(format!("/proc/self/task: {e}")))?;
    match tasks.count() {
        1 => Ok(()),
        n => Err(fault(format!("there are {n}, and only one would be confined"))),
    }
}

fn no_new_privs() -> Result<String, Missing> {
    // SAFETY: a plain setting of this thread.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok("on".to_owned()),
        _ => Err(Missing::failed("PR_SET_NO_NEW_PRIVS")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_named_or_all_or_none() {
        assert_eq!("auto".parse(), Ok(Wanted::default()));
        assert_eq!("off".parse(), Ok(Wanted::OFF));
        let two = Parts { capabilities: true, landlock: true, seccomp: false };
        assert_eq!("landlock+caps".parse(), Ok(Wanted { parts: two, demanded: true }));
        for wrong in ["", "on", "landlock,caps", "landlock+", "Seccomp", "off+caps"] {
            assert!(wrong.parse::<Wanted>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn with_another_thread_about_it_is_refused() {
        // The one that runs the tests is about.
        let fault = confine(&Confinement::default()).expect_err("this thread is not alone");
        assert!(fault.to_string().contains("only one would be confined"), "{fault}");
    }
}
