//! Lets this process make the system calls that serving a mount takes, and no others (seccomp).
//!
//! Promise: no program is run, no process made, traced or signalled, no socket made, nothing mounted, no namespace entered, no memory
//! made executable: none of that is on the list. What is not on it is answered with EPERM, and goes to the audit log.
//! Why EPERM and not death: a call that the list forgot must not cost what is still in memory; refused, it is an error of the
//! operation that made it, and one who took the process over is refused all the same (`docs/decisions/the-daemon-is-confined.md`).
//! Why `clone3` is ENOSYS: its flags lie in memory, where a filter cannot look; the C library then uses `clone`, whose flags
//! are looked at.
//! Called by: `confine`, last: after it, neither could be called. On failure: the system's error; `Unknown` without seccomp.

use super::Missing;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule};
use std::collections::BTreeMap;
use std::io;

/// The only ioctl: another thread's own descriptor for the mount (`linux/fuse.h`).
const FUSE_DEV_IOC_CLONE: u64 = 0x8004_e500;

/// Calls with any arguments.
const ANY: &[libc::c_long] = &[
    // Threads, memory, time, signals of our own.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_membarrier,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_brk,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Let pass here, for of two refusals the later filter's counts; `without_clone3` says what it is answered with.
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Descriptors that are open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_flock,
    libc::SYS_getdents64,
    libc::SYS_dup3,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    // Names: which ones, Landlock says.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_unlinkat,
    libc::SYS_chdir,
    // A backtrace shortens the names of files by it.
    libc::SYS_getcwd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    // Where two threads end the process at once, Rust lets the second wait by it, again and again (elsewhere by ppoll).
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
];

/// Calls of which one argument, by its index, must have one of some values where the mask has ones.
const SOME: &[(libc::c_long, u8, u64, &[u64])] = &[
    // Nothing executable.
    (libc::SYS_mmap, 2, libc::PROT_EXEC as u64, &[0]),
    (libc::SYS_mprotect, 2, libc::PROT_EXEC as u64, &[0]),
    (libc::SYS_ioctl, 1, WORD, &[FUSE_DEV_IOC_CLONE]),
    // Threads and no processes, in no namespace of their own.
    (libc::SYS_clone, 0, (libc::CLONE_THREAD | NAMESPACES) as u32 as u64, &[libc::CLONE_THREAD as u64]),
    (libc::SYS_prctl, 0, WORD, &[libc::PR_SET_NAME as u64]),
    // Asking for limits, and setting none.
    (libc::SYS_prlimit64, 2, u64::MAX, &[0]),
    (
        libc::SYS_fcntl,
        1,
        WORD,
        &[
            libc::F_GETFD as u64,
            libc::F_SETFD as u64,
            libc::F_GETFL as u64,
            libc::F_SETFL as u64,
            libc::F_DUPFD_CLOEXEC as u64,
        ],
    ),
];

/// Of a 32-bit argument, all bits.
const WORD: u64 = u32::MAX as u64;
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Restricts this thread.
pub(super) fn restrict() -> Result<String, Missing> {
    let built = |e: BackendError| Missing::Failed(e.to_string());
    let threads = without_clone3().map_err(built)?;
    let list = list(std::process::id()).map_err(built)?;
    // The second first, for the list does not have seccomp(2).
    install(&threads, 0)?;
    // A kernel before 4.14 cannot log; that is no reason to go without.
    match install(&list, libc::SECCOMP_FILTER_FLAG_LOG) {
        Err(Missing::Failed(_)) => install(&list, 0).map(|()| "on, but for the audit log".to_owned()),
        done => done.map(|()| "on".to_owned()),
    }
}

/// The list; `pid` is this process' own.
fn list(pid: u32) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ANY.iter().map(|&call| (call, Vec::new())).collect();
    // A signal to ourselves: what abort does.
    let own = [(libc::SYS_tgkill, 0, WORD, &[u64::from(pid)][..])];
    for &(call, argument, mask, values) in SOME.iter().chain(&own) {
        let rule = |&value: &u64| {
            let (width, how) = if mask == u64::MAX { (Qword, Eq) } else { (Dword, MaskedEq(mask)) };
            SeccompRule::new(vec![SeccompCondition::new(argument, width, how, value)?])
        };
        rules.insert(call, values.iter().map(rule).collect::<Result<_, _>>()?);
    }
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)?.try_into()
}

/// Everything is let pass by this one, but `clone3` is not there.
fn without_clone3() -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch)?.try_into()
}

/// By hand, for the crate does not offer the flag.
fn install(program: &BpfProgram, flags: libc::c_ulong) -> Result<(), Missing> {
    let len = program.len().try_into().map_err(|_| Missing::Failed("the list is too long".to_owned()))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: the kernel copies the program, whose length is true, and writes nothing to it.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match done {
        0 => Ok(()),
        _ => Err(match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENOSYS) => Missing::Unknown("this kernel has no seccomp".to_owned()),
            e => Missing::Failed(format!("seccomp: {e}")),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_call_stands_twice_and_the_list_is_a_program() {
        let all: Vec<_> = ANY.iter().copied().chain(SOME.iter().map(|s| s.0)).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        let program = list(1).expect("it compiles");
        assert!(program.len() > all.len() && program.len() < 4096, "{} steps", program.len());
    }

    #[test]
    fn what_gives_rights_is_not_on_it() {
        let listed: BTreeSet<_> = ANY.iter().copied().chain(SOME.iter().map(|s| s.0)).collect();
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_kill,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_memfd_create,
            libc::SYS_pkey_mprotect,
            libc::SYS_keyctl,
            libc::SYS_linkat,
            libc::SYS_symlinkat,
            libc::SYS_mknodat,
            libc::SYS_fchmodat,
            libc::SYS_fchownat,
            libc::SYS_seccomp,
            libc::SYS_sendmsg,
        ] {
            assert!(!listed.contains(&call), "system call {call}");
        }
    }
}
