//! Who has an address that cannot be had, so that an error can name it.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::config::Address;

/// Whether this is a socket on which nobody listens. Anything else at this path is none of our business.
pub fn is_left_over(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The process that listens there, as `name (pid 123)`, if this user may see it.
pub fn occupant(address: &Address) -> Option<String> {
    let pid = match address {
        Address::Tcp(address) => owner_of_port(address.port())?,
        Address::Unix(path) => {
            let peer = rustix::net::sockopt::socket_peercred(UnixStream::connect(path).ok()?).ok()?;
            peer.pid.as_raw_nonzero().to_string()
        }
    };
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} (pid {pid})", name.trim()))
}

fn owner_of_port(port: u16) -> Option<String> {
    let links: Vec<String> =
        ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|table| socket_of(table, port)).collect();
    let is_owner = |pid: &String| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        let mut targets = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
    };
    let names = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    // Not `self`, which is a process, too, but not under its own name.
    names.filter(|name| name.bytes().all(|octet| octet.is_ascii_digit())).find(is_owner)
}

/// What a descriptor of the socket that listens on `port` links to, from a table of `/proc/net`.
fn socket_of(table: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let table = fs::read_to_string(table).ok()?;
    table.lines().skip(1).find_map(|row| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let (_, hex) = fields.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(hex, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
        is_it.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]"))).flatten()
    })
}
