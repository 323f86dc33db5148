//! Changing the limits of a cgroup that is in use: what is given, and nothing else.

use std::collections::BTreeSet;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxMemory, LinuxResources};

use super::device_program::device_program;
use super::devices::device_knobs;
use super::hierarchy::Version;
use super::knobs::{Knob, limit_knobs};
use super::{Cgroup, Unset, hugepages, read_or_gone};
use crate::error::{Error, Kind, Result};

/// The file's first line is `oom_kill_disable 0`, where the others hold their value alone.
const OOM_CONTROL: &str = "memory.oom_control";

impl Cgroup {
    /// Sets what `resources` gives. Either all of it, or, as far as the kernel lets us take back what it took, none.
    ///
    /// Clients send the whole of their specification's resources for a change of one number (the CRI plugin does). Device
    /// rules that are in force already are not written again: that would begin with a denial of everything, in the middle
    /// of the container's work.
    ///
    /// # Errors
    /// As [`Cgroup::apply`].
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        let (knobs, filter) = self.changes(resources)?;
        let before = self.present(&knobs)?;
        let turned = self.turn_all(&knobs).and_then(Unset::refuse);
        let turned = turned.and_then(|()| filter.map_or(Ok(()), |rules| self.filter_devices(rules)));
        turned.inspect_err(|_| self.restore(before))
    }

    /// Whether [`Cgroup::update`] can be begun: to be asked before somebody else, systemd, is told of the change.
    ///
    /// # Errors
    /// Those of [`Cgroup::update`], but for what only the kernel can judge.
    pub fn check_update(&self, resources: &LinuxResources) -> Result<()> {
        self.changes(resources).map(drop)
    }

    /// What is to be written, and the rules of a device program.
    fn changes<'r>(&self, resources: &'r LinuxResources) -> Result<(Vec<Knob>, Option<&'r [LinuxDeviceCgroup]>)> {
        let version = self.hierarchies.version();
        let mut knobs = limit_knobs(resources, version)?;
        let oom_killer = resources.memory().and_then(|memory| memory.disable_oom_killer());
        if version == Version::V1 && oom_killer == Some(false) {
            knobs.push(Knob::new("memory", OOM_CONTROL, 0));
        }
        let mut filter = None;
        match resources.devices().as_deref().filter(|rules| !rules.is_empty() && !self.hierarchies.rootless) {
            Some(rules) if version == Version::V2 => {
                device_program(rules)?;
                filter = Some(rules);
            }
            Some(rules) => {
                let rules = device_knobs(rules)?;
                if !self.in_force(&rules)? {
                    // The last, for they cannot be taken back.
                    knobs.extend(rules);
                }
            }
            None => {}
        }
        hugepages::check(resources)?;
        self.hierarchies.check_controllers(&knobs)?;
        self.require(&knobs)?;
        if let (Version::V2, Some(memory)) = (version, resources.memory()) {
            self.check_usage(memory)?;
        }
        Ok((knobs, filter))
    }

    /// Whether devices.list is what these rules make it. With an exception from "allow all" it does not tell: no.
    pub(super) fn in_force(&self, rules: &[Knob]) -> Result<bool> {
        let Some(dir) = self.v1_dir("devices") else { return Ok(false) };
        let mut buf = Vec::new();
        let list: BTreeSet<&str> = read_or_gone(&dir.join("devices.list"), &mut buf)?.lines().collect();
        let wanted: BTreeSet<&str> = match rules {
            [all] if all.file == "devices.allow" => BTreeSet::from(["a *:* rwm"]),
            [all, allowed @ ..] if all.file == "devices.deny" => allowed.iter().map(|rule| &*rule.value).collect(),
            _ => return Ok(false),
        };
        Ok(list == wanted)
    }

    /// Where `checkBeforeUpdate` asks for it: v2 takes a limit below what is used, and kills until that is kept.
    fn check_usage(&self, memory: &LinuxMemory) -> Result<()> {
        if memory.check_before_update() != Some(true) {
            return Ok(());
        }
        let Some(dir) = self.dir_of("memory") else { return Ok(()) };
        let mut buf = Vec::new();
        let used: Option<i64> = read_or_gone(&dir.join("memory.current"), &mut buf)?.trim_end().parse().ok();
        for (field, limit) in [("limit", memory.limit()), ("swap", memory.swap())] {
            if let (Some(limit), Some(used)) = (limit.filter(|limit| *limit > 0), used)
                && limit <= used
            {
                let text =
                    format!("linux.resources.memory.{field} {limit} (memory.max): {used} bytes are used already");
                return Err(Error::new(Kind::FailedPrecondition, text));
            }
        }
        Ok(())
    }

    /// The knobs as they are now.
    pub(super) fn present(&self, knobs: &[Knob]) -> Result<Vec<Knob>> {
        let mut present = Vec::new();
        let mut buf = Vec::new();
        for knob in knobs.iter().filter(|knob| knob.controller != "devices") {
            let Some(dir) = self.dir_of(&knob.controller) else { continue };
            let Some((name, value)) = knob.files().find(|(name, _)| dir.join(name).exists()) else { continue };
            let text = read_or_gone(&dir.join(name), &mut buf)?;
            let value = match (knob.reset, name) {
                (Some(reset), _) => keyed(text, value, reset),
                (_, OOM_CONTROL) => {
                    text.lines().next().and_then(|line| line.split(' ').nth(1)).unwrap_or("").to_owned()
                }
                // Those of the parent, on v2.
                (_, "cpuset.cpus" | "cpuset.mems") if text.trim_end().is_empty() => "\n".to_owned(),
                // A weight, with those of single devices after it.
                _ if text.starts_with("default ") => {
                    text.lines().next().and_then(|line| line.split(' ').nth(1)).unwrap_or("").to_owned()
                }
                _ => text.trim_end().to_owned(),
            };
            if !value.is_empty() {
                let knob = Knob::new(knob.controller.clone(), name.to_owned(), value);
                present.push(knob);
            }
        }
        Ok(present)
    }

    /// Best effort: the error that is told is the one that led here.
    pub(super) fn restore(&self, mut before: Vec<Knob>) {
        // Backwards; and again, for those of a pair whose other half had to come first.
        for _ in 0..2 {
            before.reverse();
            before.retain(|knob| self.turn(knob, &mut None).is_err());
        }
    }
}

/// The line of the same key as `value`, or the one that makes it as if there were none.
fn keyed(text: &str, value: &str, reset: &str) -> String {
    let key = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let line = text.lines().find(|line| key(line) == key(value)).map(|line| line.trim_end().to_owned());
    line.unwrap_or_else(|| format!("{} {reset}", key(value)))
}
