//! Asks for a secret: a line of standard input where that is no terminal, else on the terminal.
//!
//! Promise: the terminal shows again what is typed once the question is over, also when a signal ends it
//! (SIGINT, SIGTERM, SIGHUP, SIGQUIT) or stops it (SIGTSTP). A secret is one line, without its end.
//! Why it holds: a handler restores the settings and then lets the signal do what it does by default.
//! Called by: `key`. On failure: `Exit::NoKey`, and the options that need nobody to ask.

use super::exit::{Exit, Failure};
use crate::base::secret::Passphrase;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::SeqCst};
use zeroize::Zeroize;

/// Longest line that is taken for a secret.
const LINE_BYTES_MAX: usize = 64 << 10;

/// An answer.
pub struct Answer {
    /// The line.
    pub secret: Passphrase,
    /// Whether a person typed it, and may have mistyped.
    pub is_typed: bool,
}

/// Asks, and returns the line. Each call takes one line, so that a script may answer several questions.
pub fn ask(question: &str) -> Result<Answer, Failure> {
    let stdin = io::stdin();
    let mut why = String::new();
    if !stdin.is_terminal() {
        match from_stdin() {
            Ok(Some(secret)) => return Ok(Answer { secret, is_typed: false }),
            Ok(None) => why.push_str("standard input is empty, "),
            Err(e) => why = format!("standard input: {e}, "),
        }
    }
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
    let asked = match terminal {
        Ok(terminal) => ask_on(&terminal, question),
        // A terminal that belongs to another session, as after `su - user -c`.
        Err(_) if stdin.is_terminal() => stdin.as_fd().try_clone_to_owned().and_then(|fd| ask_on(&fd.into(), question)),
        Err(e) => Err(e),
    };
    asked.map(|secret| Answer { secret, is_typed: true }).map_err(|e| {
        let other = "write it to standard input, or use --password-file, --key-file or --password-fd";
        Failure::new(Exit::NoKey, format!("no passphrase: {why}nobody to ask on a terminal ({e}); {other}"))
    })
}

/// One line of standard input; `None` at its end. Nothing behind the line is consumed.
fn from_stdin() -> io::Result<Option<Passphrase>> {
    line(&mut File::from(io::stdin().as_fd().try_clone_to_owned()?))
}

fn ask_on(terminal: &File, question: &str) -> io::Result<Passphrase> {
    let quiet = Quiet::begin(terminal)?;
    // A terminal that standard input was opened on may be open for reading only.
    if (&*terminal).write_all(question.as_bytes()).is_err() {
        let _ = io::stderr().write_all(question.as_bytes());
    }
    let read = line(&mut &*terminal);
    drop(quiet);
    Ok(read?.unwrap_or_else(|| Passphrase(Vec::new())))
}

/// Reads up to the end of a line, a byte at a time, into memory that does not move.
fn line(from: &mut impl Read) -> io::Result<Option<Passphrase>> {
    let mut line = Passphrase(Vec::with_capacity(LINE_BYTES_MAX));
    let mut byte = [0];
    let ended = loop {
        match from.read(&mut byte) {
            Ok(0) => break false,
            Ok(_) if byte[0] == b'\n' => break true,
            Ok(_) if line.0.len() == LINE_BYTES_MAX => {
                return Err(io::Error::other(format!("a line longer than {LINE_BYTES_MAX} bytes is not a passphrase")));
            }
            Ok(_) => line.0.push(byte[0]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    };
    byte.zeroize();
    if line.0.last() == Some(&b'\r') {
        line.0.pop();
    }
    Ok((ended || !line.0.is_empty()).then_some(line))
}

/// What a handler needs to give the terminal back.
struct Saved {
    fd: i32,
    shown: libc::termios,
    quiet: libc::termios,
}

/// Set while a question is open; only a handler reads it.
static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());

const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet {
    before: Vec<(i32, libc::sigaction)>,
}

impl Quiet {
    fn begin(terminal: &File) -> io::Result<Quiet> {
        let fd = terminal.as_raw_fd();
        let mut shown = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the descriptor is open, and the call fills `shown`.
        if unsafe { libc::tcgetattr(fd, shown.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so it is filled.
        let shown = unsafe { shown.assume_init() };
        let mut quiet = shown;
        quiet.c_lflag &= !libc::ECHO;
        quiet.c_lflag |= libc::ECHONL;
        SAVED.store(Box::into_raw(Box::new(Saved { fd, shown, quiet })), SeqCst);
        let mut taken = Quiet { before: Vec::new() };
        for signal in ENDING {
            taken.handle(signal, give_back_and_end);
        }
        taken.handle(libc::SIGTSTP, give_back_and_stop);
        // SAFETY: the descriptor is open and `quiet` lives.
        match unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw const quiet) } {
            0 => Ok(taken),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Installs a handler, except for a signal that this process was started to ignore (nohup).
    fn handle(&mut self, signal: i32, handler: extern "C" fn(i32)) {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: both are plain memory for which zero is a value; the handler only makes calls that are allowed in one.
        unsafe {
            (*action.as_mut_ptr()).sa_sigaction = handler as *const () as usize;
            (*action.as_mut_ptr()).sa_flags = libc::SA_RESTART;
            if libc::sigaction(signal, ptr::null(), before.as_mut_ptr()) != 0
                || (*before.as_ptr()).sa_sigaction == libc::SIG_IGN
            {
                return;
            }
            if libc::sigaction(signal, action.as_ptr(), ptr::null_mut()) == 0 {
                self.before.push((signal, before.assume_init()));
            }
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let saved = SAVED.load(SeqCst);
        // SAFETY: only `begin` stores a pointer, from a box; the question is still open, so it is there.
        unsafe { libc::tcsetattr((*saved).fd, libc::TCSANOW, &raw const (*saved).shown) };
        for (signal, before) in self.before.drain(..) {
            // SAFETY: what was in force before is put back.
            unsafe { libc::sigaction(signal, &raw const before, ptr::null_mut()) };
        }
        SAVED.store(ptr::null_mut(), SeqCst);
        // SAFETY: no handler is installed any more that could use it, and it came from a box.
        drop(unsafe { Box::from_raw(saved) });
    }
}

extern "C" fn give_back_and_end(signal: i32) {
    let saved = SAVED.load(SeqCst);
    // SAFETY: these calls are allowed in a handler; the pointer is valid while a question is open. The signal is blocked
    // until the handler returns, and then ends the process as it would have.
    unsafe {
        if !saved.is_null() {
            libc::tcsetattr((*saved).fd, libc::TCSANOW, &raw const (*saved).shown);
            libc::write((*saved).fd, c"\n".as_ptr().cast(), 1);
        }
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn give_back_and_stop(_signal: i32) {
    let saved = SAVED.load(SeqCst);
    // SAFETY: as above; execution goes on behind `raise` once the process is continued.
    unsafe {
        if !saved.is_null() {
            libc::tcsetattr((*saved).fd, libc::TCSANOW, &raw const (*saved).shown);
        }
        libc::raise(libc::SIGSTOP);
        if !saved.is_null() {
            libc::tcsetattr((*saved).fd, libc::TCSANOW, &raw const (*saved).quiet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_line_and_the_next_question_gets_the_next_line() {
        let mut text = &b"old\r\n\nnew"[..];
        let mut next = || line(&mut text).unwrap().map(|line| line.0.clone());
        assert_eq!(next().as_deref(), Some(&b"old"[..]));
        assert_eq!(next().as_deref(), Some(&b""[..]));
        assert_eq!(next().as_deref(), Some(&b"new"[..]));
        assert_eq!(next(), None);
        assert!(line(&mut &vec![b'x'; LINE_BYTES_MAX + 1][..]).is_err());
    }
}
