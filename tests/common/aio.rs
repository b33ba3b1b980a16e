//! Asynchronous direct writes, as `libaio` submits them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const PWRITE: u16 = 1;

/// `struct iocb` of the kernel.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// `struct io_event` of the kernel.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// A buffer that begins on a page.
#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

/// A queue of writes.
pub struct Aio(libc::c_ulong);

impl Aio {
    pub fn new() -> Aio {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, 64, &raw mut context) };
        assert_eq!(done, 0, "io_setup: {}", io::Error::last_os_error());
        Aio(context)
    }

    /// Writes, all at once, pages full of a byte each: offset, length, byte. Returns when all are done.
    pub fn write(&self, file: &File, writes: &[(u64, usize, u8)]) {
        let buffers: Vec<Vec<Page>> =
            writes.iter().map(|(_, len, byte)| vec![Page([*byte; 4096]); len.div_ceil(4096)]).collect();
        let requests: Vec<Iocb> = writes
            .iter()
            .zip(&buffers)
            .map(|((offset, len, _), buffer)| Iocb {
                opcode: PWRITE,
                fd: file.as_raw_fd() as u32,
                buffer: buffer.as_ptr() as u64,
                bytes: *len as u64,
                offset: *offset as i64,
                ..Iocb::default()
            })
            .collect();
        let pointers: Vec<*const Iocb> = requests.iter().map(std::ptr::from_ref).collect();
        // SAFETY: requests and buffers live until all events have come.
        let begun = unsafe { libc::syscall(libc::SYS_io_submit, self.0, pointers.len(), pointers.as_ptr()) };
        assert_eq!(begun, pointers.len() as i64, "io_submit: {}", io::Error::last_os_error());
        let mut events = vec![Event::default(); writes.len()];
        let mut come = 0;
        while come < events.len() {
            let left = events.len() - come;
            let at = events[come..].as_mut_ptr();
            // SAFETY: there is room for so many events.
            let more = unsafe {
                libc::syscall(libc::SYS_io_getevents, self.0, 1, left, at, std::ptr::null::<libc::timespec>())
            };
            assert!(more > 0, "io_getevents: {}", io::Error::last_os_error());
            come += more as usize;
        }
        // All have one length, so the order in which they come does not matter.
        assert!(events.iter().all(|e| e.result == writes[0].1 as i64), "written: {:?}", events[0].result);
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: nothing of it is under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}
