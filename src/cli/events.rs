//! `dray events`
//!
//! It only looks, so that it is the same for a shim's container and for one of this command line: the numbers and the word
//! of the OOM killer are the kernel's.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::io::Errno;
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::stats::Stats;
use super::target::{self, Found};
use super::{Global, output};
use crate::cgroup::stats::Source;
use crate::cgroup::{Bell, Cgroup, OomWatch};
use crate::engine::adopt::Status;
use crate::engine::host;
use crate::engine::ready::watch;
use crate::engine::stats::interfaces_of;
use crate::error::{Error, Kind, Result};

/// How often the counter is looked at after a bell that rings before the kill, and for what is none here. The pauses between
/// double, from a millisecond on.
const LOOKS: u32 = 10;

/// Prints what happens to a container, and its numbers.
#[derive(Debug, Args)]
pub struct Events {
    /// Between two readings: 5s, 100ms, 1m30s
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    interval: Duration,
    /// Print one reading, and nothing else
    #[arg(long)]
    stats: bool,
    /// The container
    id: String,
}

/// A line of the output.
#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

/// Runs it, until the container ends.
///
/// # Errors
/// "container with id ID is not running"; `FailedPrecondition` for one without a cgroup.
pub fn run(global: &Global, args: Events) -> Result<ExitCode> {
    let found = target::find(global, &args.id)?;
    if args.interval.is_zero() {
        return Err(Error::new(Kind::InvalidArgument, "duration interval must be greater than 0"));
    }
    let refused = |text: String| Error::new(Kind::FailedPrecondition, text);
    let stopped = || refused(format!("container with id {} is not running", args.id));
    let reader = Reader::new(&found)?.ok_or_else(|| refused(format!("container {}: it has no cgroup", args.id)));
    host::block_on(async {
        if found.status().await? == Status::Stopped {
            return Err(stopped());
        }
        let reader = reader?;
        match args.stats {
            true => reader.tell_stats(),
            false => reader.follow(args.interval).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A container that is looked at.
struct Reader<'a> {
    found: &'a Found,
    cgroup: Cgroup,
    source: Source,
}

impl<'a> Reader<'a> {
    /// `None` for one without a cgroup, or whose cgroup is gone.
    fn new(found: &'a Found) -> Result<Option<Self>> {
        let Some(cgroup) = found.cgroup()? else { return Ok(None) };
        match cgroup.open_stats() {
            Ok(source) => Ok(Some(Self { found, cgroup, source })),
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn tell(&self, kind: &'static str, data: Option<Stats>) -> Result<()> {
        output::print(&output::line(&Event { r#type: kind, id: &self.found.saved.id, data })?)
    }

    fn tell_stats(&self) -> Result<()> {
        let interfaces = self.found.living_init().map(|init| interfaces_of(init.pid)).transpose()?.flatten();
        self.tell("stats", Some(Stats::read(&self.cgroup, &self.source, interfaces)?))
    }

    /// Tells of everything until its init has ended.
    async fn follow(&self, interval: Duration) -> Result<()> {
        let Some(init) = self.found.saved.init.and_then(|init| init.open()) else { return Ok(()) };
        let init = watch(init, Interest::READABLE)?;
        let mut oom = self.cgroup.watch_oom()?.map(Oom::new).transpose()?;
        let mut readings = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        readings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let rung = async {
                match &oom {
                    Some(oom) => oom.ring().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // The kernel counts a kill before its victim ends.
                _ = init.readable() => break,
                rung = rung => match (rung, &mut oom) {
                    (true, Some(oom)) => oom.look_for(LOOKS, self).await?,
                    _ => oom = None,
                },
                _ = readings.tick() => self.tell_stats().unwrap_or_else(|e| log::error!("{e}")),
            }
        }
        oom.map_or(Ok(()), |mut oom| oom.look(self).map(drop))
    }
}

/// The OOM killer at a container.
struct Oom {
    watch: OomWatch,
    bell: Option<(AsyncFd<std::rc::Rc<OwnedFd>>, Interest)>,
    told: u64,
}

impl Oom {
    fn new(oom: OomWatch) -> Result<Self> {
        let bell = match oom.bell() {
            Some(Bell::Eventfd(bell)) => Some((watch(bell, Interest::READABLE)?, Interest::READABLE)),
            Some(Bell::Events(bell)) => Some((watch(bell, Interest::PRIORITY)?, Interest::PRIORITY)),
            None => None,
        };
        let told = oom.look()?.unwrap_or_default().kills;
        Ok(Self { watch: oom, bell, told })
    }

    /// Waits for the bell; false when there is none.
    async fn ring(&self) -> bool {
        let Some((bell, kind)) = &self.bell else { return std::future::pending().await };
        let Ok(mut ready) = bell.ready(*kind).await else { return false };
        if *kind == Interest::READABLE {
            let mut count = [0; 8];
            let _ = rustix::io::read(bell.get_ref(), &mut count).map_err(|e| e == Errno::AGAIN);
        }
        ready.clear_ready();
        true
    }

    /// It has rung, perhaps before the kill.
    async fn look_for(&mut self, looks: u32, reader: &Reader<'_>) -> Result<()> {
        let mut pause = Duration::from_millis(1);
        for _ in 0..looks {
            if self.look(reader)? {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Ok(())
    }

    /// Tells of what there was since the last look: true when there was something.
    fn look(&mut self, reader: &Reader<'_>) -> Result<bool> {
        let Some(seen) = self.watch.look()? else { return Ok(true) };
        let killed = seen.kills > self.told;
        self.told = seen.kills;
        if killed || seen.stuck {
            reader.tell("oom", None)?;
        }
        Ok(killed || seen.stuck)
    }
}

/// A time as Go's time.ParseDuration reads it: numbers that may have fractions, each with its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("time: invalid duration {text:?}");
    let mut left = text.strip_prefix('+').unwrap_or(text);
    if left == "0" {
        return Ok(Duration::ZERO);
    }
    if left.is_empty() {
        return Err(wrong());
    }
    let mut seconds = 0.0;
    while !left.is_empty() {
        let unit_at = left.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, rest) = left.split_at(unit_at);
        let next = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(next);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        seconds += number.parse::<f64>().map_err(|_| wrong())? * scale;
        left = rest;
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, millis) in
            [("5s", 5000), ("100ms", 100), ("1m30s", 90_000), ("1.5h", 5_400_000), ("0", 0), ("0s", 0)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "5", "s", "5x", "-1s", "1s2"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
