//! The mount as a Samba share, with the extended attributes in which it keeps what Windows and macOS know of a file.

use crate::common::rng::Rng;
use crate::common::tools::on_path;
use crate::common::{TestVault, eventually, needs_root, output, run};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server for one share; its own files lie outside the vault.
struct Samba {
    beside: tempfile::TempDir,
    config: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl Samba {
    fn new(share: &Path) -> Samba {
        let beside = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(beside.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let own = beside.path().display();
        let config = beside.path().join("smb.conf");
        let text = format!(
            "[global]
             private dir = {own}
             lock directory = {own}
             state directory = {own}
             cache directory = {own}
             pid directory = {own}
             ncalrpc dir = {own}/rpc
             log file = {own}/log
             smb ports = {port}
             interfaces = lo
             bind interfaces only = yes
             map to guest = bad user
             guest account = root
             server role = standalone
             disable spoolss = yes
             load printers = no
             [share]
             path = {}
             guest ok = yes
             writable = yes
             force user = root
             vfs objects = catia fruit streams_xattr acl_xattr
             fruit:metadata = netatalk
             store dos attributes = yes
             ea support = yes
             strict allocate = yes
             ",
            share.display()
        );
        fs::write(&config, text).unwrap();
        Samba { beside, config, port, server: None }
    }

    fn start(&mut self) {
        let said = fs::File::create(self.beside.path().join("said")).unwrap();
        let mut c = Command::new(on_path("smbd"));
        c.args(["-F", "--no-process-group", "-s"]).arg(&self.config).stdin(Stdio::null());
        // A group of its own, so that its children end with it.
        c.stdout(said.try_clone().unwrap()).stderr(said).process_group(0);
        self.server = Some(c.spawn().unwrap());
        eventually("Samba answers", Duration::from_secs(60), || self.client("ls").status.success());
    }

    fn client(&self, commands: &str) -> std::process::Output {
        let mut c = Command::new(on_path("smbclient"));
        c.arg("-s").arg(&self.config).args(["-p", &self.port.to_string(), "-N", "//127.0.0.1/share", "-c", commands]);
        output(c.current_dir(self.beside.path()))
    }

    /// Commands that must all succeed; gives what the client printed.
    fn passes(&self, commands: &str) -> String {
        let out = self.client(commands);
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(out.status.success() && !text.contains("NT_STATUS_"), "{commands}: {text}");
        text
    }

    fn file(&self, name: &str) -> PathBuf {
        self.beside.path().join(name)
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // SAFETY: the group of a child that was not waited for yet.
            unsafe { libc::kill(-(server.id() as i32), libc::SIGTERM) };
            let _ = server.wait();
        }
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn a_samba_share_keeps_streams_attributes_and_content() {
    needs_root("serve files as their owner");
    let v = TestVault::mounted_with(&["allow_other"]);
    fs::create_dir(v.path("share")).unwrap();
    fs::set_permissions(v.path("share"), fs::Permissions::from_mode(0o777)).unwrap();
    let mut samba = Samba::new(&v.path("share"));
    let (large, stream) = (Rng(1).bytes(24 << 20), Rng(2).bytes(60_000));
    fs::write(samba.file("large"), &large).unwrap();
    fs::write(samba.file("stream"), &stream).unwrap();
    fs::write(samba.file("text"), "a text\n").unwrap();
    samba.start();
    let long = "n".repeat(200);
    samba.passes(&format!(
        "put large large; put text text; put stream text:one; put text text:two; mkdir dir; put text dir/a; \
         rename text renamed; setmode renamed +h; mkdir \"a b#c\"; put text \"a b#c/{long}\"; du; dir"
    ));
    let as_it_was_put = |samba: &Samba| {
        let said = samba.passes("get large large-back; get renamed:one stream-back; allinfo renamed");
        assert!(fs::read(samba.file("large-back")).unwrap() == large, "content through the share");
        assert!(fs::read(samba.file("stream-back")).unwrap() == stream, "a stream through the share");
        assert!(said.contains("stream: [:one:$DATA], 60000 bytes"), "streams: {said}");
        let attributes = said.lines().find(|l| l.starts_with("attributes:")).unwrap_or_default();
        assert!(attributes.contains('H'), "attributes: {said}");
    };
    as_it_was_put(&samba);
    samba.stop();
    eventually("Samba has left the mount", Duration::from_secs(20), || {
        !output(Command::new("fuser").arg("-m").arg(&v.mnt)).status.success()
    });
    v.checked_remount();
    samba.start();
    as_it_was_put(&samba);
    samba.passes("deltree dir; del large; ls");
    assert!(v.path("share/renamed").exists() && !v.path("share/large").exists() && !v.path("share/dir").exists());
    // The streams lie in extended attributes, which is what is tried here.
    let attributes = run(Command::new("getfattr").args(["-m", "-"]).arg(v.path("share/renamed")));
    assert!(attributes.contains("DosStream.one"), "{attributes}");
}
