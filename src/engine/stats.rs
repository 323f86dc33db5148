//! What a container has used.

use std::fs::File;
use std::io::Read;

use crate::cgroup;
use crate::error::{Context, Os, Result};

use super::Engine;
use super::container::Container;

/// All of it.
#[derive(Debug)]
pub struct Stats {
    /// By its cgroup.
    pub cgroup: cgroup::stats::Stats,
    /// By the interfaces of its network namespace, where that is not the host's; in a pod they are those of all its
    /// containers.
    pub network: Vec<Interface>,
}

/// A network interface.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// From outside.
    pub received: Traffic,
    /// To the outside.
    pub sent: Traffic,
}

/// In one direction.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets that were dropped.
    pub dropped: u64,
}

impl Engine {
    /// What the container has used.
    ///
    /// # Errors
    /// `NotFound` also when its cgroup is gone.
    pub fn stats(&self, id: &str) -> Result<Stats> {
        let container = self.container(id)?;
        let name = || format!("container {id}");
        let source = match container.stats.get() {
            Some(source) => source,
            None => {
                let source = container.cgroup.open_stats().context(name)?;
                container.stats.get_or_init(|| source)
            }
        };
        Ok(Stats { cgroup: source.read().context(name)?, network: network(&container).context(name)? })
    }
}

/// For all interfaces that one may have; and no questions about the length of a file that has none.
const ROOM: u64 = 1 << 20;

fn network(container: &Container) -> Result<Vec<Interface>> {
    if container.namespaces.get() & libc::CLONE_NEWNET as u64 == 0 || container.init_reaped.get() {
        return Ok(Vec::new());
    }
    // Not kept open: that would keep the namespace. The pid is init's, for we have not reaped it.
    interfaces_in(container.init.pid() as i32)
}

/// The interfaces of a process's network namespace, where that is not ours.
///
/// # Errors
/// The system's.
pub fn interfaces_of(pid: i32) -> Result<Option<Vec<Interface>>> {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).ok();
    let theirs = namespace(&pid.to_string());
    if theirs.is_none() || theirs == namespace("self") {
        return Ok(None);
    }
    interfaces_in(pid).map(Some)
}

fn interfaces_in(pid: i32) -> Result<Vec<Interface>> {
    let path = format!("/proc/{pid}/net/dev");
    let mut text = Vec::new();
    match File::open(&path).and_then(|file| file.take(ROOM).read_to_end(&mut text)) {
        // The container names its interfaces, and the kernel takes what is no UTF-8: that must not keep its numbers from us.
        Ok(_) => Ok(interfaces(&String::from_utf8_lossy(&text))),
        // It has ended, and its namespaces with it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ESRCH)) => Ok(Vec::new()),
        Err(e) => Err(e).os(|| format!("read {path}")),
    }
}

/// The lines of /proc/net/dev (proc_pid_net(5)) but for the loopback interface, by which nothing comes or goes.
fn interfaces(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let name = name.trim().to_owned();
        // Eight for each direction, of which the first four.
        let numbers: Vec<u64> = numbers.split_ascii_whitespace().map(|number| number.parse().unwrap_or(0)).collect();
        let traffic = |at: usize| match *numbers.get(at..at + 4)? {
            [bytes, packets, errors, dropped] => Some(Traffic { bytes, packets, errors, dropped }),
            _ => None,
        };
        let (received, sent) = (traffic(0)?, traffic(8)?);
        Some(Interface { name, received, sent })
    };
    text.lines().filter_map(interface).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_proc_net_dev() {
        let text = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    1234      10    0    0    0     0          0         0     1234      10    0    0    0     0       0          0
  eth0: 11 12 13 14 15 16 17 18 21 22 23 24 25 26 27 28
";
        let received = Traffic { bytes: 11, packets: 12, errors: 13, dropped: 14 };
        let sent = Traffic { bytes: 21, packets: 22, errors: 23, dropped: 24 };
        assert_eq!(interfaces(text), [Interface { name: "eth0".into(), received, sent }]);
    }
}
