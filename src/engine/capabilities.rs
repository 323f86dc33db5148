//! What a specification asks for and nobody can grant: groups in a user namespace that denies them, and capabilities: a warning and not an error (runtime-spec: config.md,
//! "capabilities"), for "all that there are" is what clients write for a privileged container.

use crate::init::plan::Process;
use crate::spec::capabilities::CAPABILITIES;
use crate::spec::id_map::IdMaps;
use crate::sys::cred::{self, Capabilities};

use super::Engine;

impl Engine {
    /// Takes away what the process `name` cannot have, and says so. In a user namespace, whose maps there then are, it has
    /// them all.
    pub(super) fn take_ungrantable(&self, name: &str, maps: Option<&IdMaps>, wanted: &mut Capabilities) {
        let ours = || *self.capabilities.get_or_init(|| cred::permitted().unwrap_or(u64::MAX));
        let (granted, lost) = grantable(wanted, if maps.is_some() { u64::MAX } else { ours() });
        // The default of `runc spec` has ambient ones that are not inheritable, which no kernel gives: nobody misses them.
        let unheard_of = wanted.ambient & !wanted.inheritable;
        let told = lost_of(&Capabilities { ambient: wanted.ambient & !unheard_of, ..*wanted }, &granted);
        *wanted = granted;
        let names = |lost: u64| {
            let names = CAPABILITIES.iter().enumerate().filter(move |(number, _)| lost & (1 << number) != 0);
            names.map(|(_, capability)| format!("CAP_{capability}")).collect::<Vec<_>>().join(" ")
        };
        if told != 0 {
            log::warn!("{name}: capabilities that cannot be granted: {}", names(told));
        } else if lost != 0 {
            log::debug!("{name}: ambient capabilities that are not inheritable: {}", names(lost));
        }
    }
}

impl Engine {
    /// Leaves the process `name` the groups that we have, where our user namespace does not let anybody set them; as runc does,
    /// and says so where others are asked for.
    pub(super) fn leave_groups(&self, name: &str, process: &mut Process) {
        if !self.own.denies_groups {
            return;
        }
        let mut lost = process.groups.take().unwrap_or_default();
        // That one it has.
        lost.retain(|gid| *gid != process.gid);
        if !lost.is_empty() {
            log::warn!("{name}: rootless, groups that this user namespace does not let be set: {lost:?}");
        }
    }
}

/// Says which capabilities of the process `name` nobody knows, and so are left out (`load`).
pub(super) fn warn_of_unknown(name: &str, unknown: &[String]) {
    if !unknown.is_empty() {
        log::warn!("{name}: capabilities that are not known: {unknown:?}");
    }
}

/// What of `wanted` capset(2) and prctl(2) give to one who has `ours`, and what they do not.
fn grantable(wanted: &Capabilities, ours: u64) -> (Capabilities, u64) {
    let permitted = wanted.permitted & ours;
    let inheritable = wanted.inheritable & ours;
    let granted = Capabilities {
        bounding: wanted.bounding & ours,
        effective: wanted.effective & permitted,
        permitted,
        inheritable,
        ambient: wanted.ambient & permitted & inheritable,
    };
    (granted, lost_of(wanted, &granted))
}

fn lost_of(wanted: &Capabilities, granted: &Capabilities) -> u64 {
    let sets = |all: &Capabilities| [all.bounding, all.effective, all.permitted, all.inheritable, all.ambient];
    sets(wanted).into_iter().zip(sets(granted)).fold(0, |lost, (wanted, granted)| lost | wanted & !granted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_would_refuse_is_taken_away_and_told() {
        let all = Capabilities { bounding: 7, effective: 7, permitted: 7, inheritable: 7, ambient: 7 };
        assert_eq!(grantable(&all, 7), (all, 0));
        let fewer = Capabilities { bounding: 5, effective: 5, permitted: 5, inheritable: 5, ambient: 5 };
        assert_eq!(grantable(&all, 5), (fewer, 2));
        // The ambient set needs the other two, and the effective one the permitted.
        let wanted = Capabilities { bounding: 7, effective: 2, permitted: 1, inheritable: 4, ambient: 4 };
        assert_eq!(grantable(&wanted, 7), (Capabilities { effective: 0, ambient: 0, ..wanted }, 6));
    }
}
