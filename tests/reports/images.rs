//! Disk images in the mount: those of virtual machines, and a filesystem in a loop device.
//!
//! Method: every block that was written has a pattern that is read back by the program that wrote it, after a discard,
//! a snapshot, a conversion, and a remount; `qemu-img check` and `e2fsck` judge the whole.

use crate::common::rng::Rng;
use crate::common::tools::on_path;
use crate::common::{TestVault, eventually, needs_root, output, run};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Runs qemu-io's commands on an image without the kernel's cache; true if every pattern was what it must be.
fn qemu_io(image: &Path, format: &str, engine: &str, commands: &[&str]) -> Result<(), String> {
    let mut c = Command::new(on_path("qemu-io"));
    c.args(["-f", format, "-t", "none", "-i", engine, "-d", "unmap"]);
    for command in commands {
        c.args(["-c", command]);
    }
    let out = output(c.arg(image));
    let text = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
    let failed = ["attern verification failed", "rror"].iter().any(|word| text.contains(word));
    if out.status.success() && !failed { Ok(()) } else { Err(format!("{commands:?} with {engine}: {text}")) }
}

fn qemu_img(words: &[&str]) {
    run(Command::new(on_path("qemu-img")).args(words));
}

#[test]
fn disk_images_without_the_kernels_cache_keep_every_block() {
    let v = TestVault::mounted();
    let text = |name: &str| v.path(name).to_str().unwrap().to_owned();
    let (qcow, raw, small) = (text("image.qcow2"), text("image.raw"), text("small.qcow2"));
    let images = [("qcow2", v.path("image.qcow2")), ("raw", v.path("image.raw"))];
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata,lazy_refcounts=on", &qcow, "64M"]);
    qemu_img(&["create", "-q", "-f", "raw", &raw, "64M"]);
    qemu_img(&["create", "-q", "-f", "raw", "-o", "preallocation=full", &text("full.raw"), "8M"]);

    let engines = ["threads", "native", "io_uring"];
    // A machine may forbid io_uring, which says nothing of the mount; the others must be there.
    let works =
        |engine: &&&str| **engine != "io_uring" || qemu_io(&v.path("full.raw"), "raw", engine, &["read 0 512"]).is_ok();
    for engine in engines.iter().filter(works) {
        for (format, image) in &images {
            for at in [512, 5632, MIB, 20 * MIB, 33_554_944] {
                let (inner, zeros) = (at + 512, at + 8192);
                qemu_io(
                    image,
                    format,
                    engine,
                    &[
                        &format!("write -P 7 {at} 66048"),
                        &format!("aio_write -P 9 {inner} 512"),
                        "aio_flush",
                        &format!("write -z {zeros} 4096"),
                        &format!("read -P 7 {at} 512"),
                        &format!("read -P 9 {inner} 512"),
                        &format!("read -P 0 {zeros} 4096"),
                        "flush",
                    ],
                )
                .unwrap();
            }
        }
    }
    for (format, image) in &images {
        let commands = ["write -P 5 40M 4M", "discard 41M 1M", "read -P 0 41M 1M", "read -P 5 42M 2M"];
        qemu_io(image, format, "threads", &commands).unwrap();
    }
    qemu_img(&["snapshot", "-c", "before", &qcow]);
    qemu_io(&images[0].1, "qcow2", "threads", &["write -P 3 0 1M"]).unwrap();
    qemu_img(&["snapshot", "-a", "before", &qcow]);
    qemu_img(&["compare", "-q", "-f", "qcow2", "-F", "raw", &qcow, &raw]);
    qemu_img(&["convert", "-t", "none", "-T", "none", "-n", "-f", "qcow2", "-O", "raw", &qcow, &raw]);
    qemu_img(&["convert", "-t", "none", "-T", "none", "-c", "-f", "raw", "-O", "qcow2", &raw, &small]);

    // A machine's image is locked while it runs.
    let mut machine = Command::new(on_path("qemu-io"));
    machine.args(["-f", "qcow2", &qcow]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut machine = machine.spawn().unwrap();
    eventually("a second program is kept from a running machine's image", Duration::from_secs(20), || {
        qemu_io(&images[0].1, "qcow2", "threads", &["read 0 512"]).is_err_and(|said| said.contains("lock"))
    });
    drop(machine.stdin.take());
    machine.wait().unwrap();

    v.checked_remount();
    for image in [&qcow, &small] {
        qemu_img(&["check", "-q", image]);
        qemu_img(&["compare", "-q", "-f", "qcow2", "-F", "raw", image, &raw]);
    }
    // The judges are worth something: a wrong pattern and a changed image are seen.
    assert!(qemu_io(&images[1].1, "raw", "threads", &["read -P 6 42M 1M"]).is_err(), "qemu-io took a wrong pattern");
    let flip = "printf abc | dd of=\"$1\" bs=1 seek=44040192 conv=notrunc status=none";
    run(Command::new("bash").args(["-c", flip, "-", &raw]));
    let compared = output(Command::new("qemu-img").args(["compare", "-q", "-f", "qcow2", "-F", "raw", &small, &raw]));
    assert!(!compared.status.success(), "qemu-img took a changed image");
}

/// A loop device on a file; detached when dropped.
struct Loop(String);

impl Loop {
    fn on(image: &Path, flags: &[&str]) -> Loop {
        Loop(run(Command::new("losetup").args(["-f", "--show"]).args(flags).arg(image)).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// A mounted filesystem; unmounted when dropped.
struct Inner<'a>(&'a Path);

impl Inner<'_> {
    fn mount<'a>(device: &Loop, at: &'a Path, options: &str) -> Inner<'a> {
        run(Command::new("mount").args(["-o", options, &device.0]).arg(at));
        Inner(at)
    }
}

impl Drop for Inner<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_filesystem_in_a_loop_device_is_filled_trimmed_and_whole() {
    needs_root("set up loop devices");
    let v = TestVault::mounted();
    let inside = v.outside("inside");
    fs::create_dir(&inside).unwrap();
    for direct in ["off", "on"] {
        let image = v.path(format!("image-{direct}"));
        fs::File::create(&image).unwrap().set_len(96 * MIB).unwrap();
        let blocks = || fs::metadata(&image).unwrap().blocks();
        let content = |n: u64| Rng(n).bytes(12 << 20);
        {
            let device = Loop::on(&image, &[&format!("--direct-io={direct}")]);
            run(Command::new("mkfs.ext4").args(["-q", &device.0]));
            let _mounted = Inner::mount(&device, &inside, "rw");
            for n in 1..=4 {
                fs::write(inside.join(n.to_string()), content(n)).unwrap();
            }
            run(Command::new("sync").arg("-f").arg(&inside));
        }
        // Blocks of a file are counted anew when it is closed.
        v.remount();
        let full = blocks();
        {
            let device = Loop::on(&image, &[&format!("--direct-io={direct}")]);
            let _mounted = Inner::mount(&device, &inside, "rw");
            for n in 3..=4 {
                fs::remove_file(inside.join(n.to_string())).unwrap();
            }
            // ext4 gives back only what a commit of its journal has freed.
            run(Command::new("sync").arg("-f").arg(&inside));
            run(Command::new("fstrim").arg(&inside));
        }
        v.checked_remount();
        let less = full.saturating_sub(blocks()) * 512;
        assert!(less > 20 * MIB, "trimming gave back {} of 24 MiB (direct {direct})", less / MIB);
        let device = Loop::on(&image, &["-r"]);
        run(Command::new("e2fsck").args(["-fn", &device.0]));
        let _mounted = Inner::mount(&device, &inside, "ro");
        for n in 1..=2 {
            assert!(fs::read(inside.join(n.to_string())).unwrap() == content(n), "file {n} (direct {direct})");
        }
    }
}
