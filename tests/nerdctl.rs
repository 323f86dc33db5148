//! Containers of ours under nerdctl: `nerdctl run --runtime io.containerd.dray.v2`, where a nerdctl is on the PATH.
//!
//! Debian has none, so none is fetched (scripts/daemons); with one at hand the scenarios are those that Docker goes through.

mod nerdctl {
    use std::path::Path;
    use std::process::Command;

    use common::containerd::version::{Driven, V1_6, V2_1};
    use common::containerd::{Containerd, can_overlay, text};
    use common::docker_cli::Cli;
    use common::{docker_scenarios as scenarios, skipped};

    /// nerdctl keeps a table of names and its logs below the data root: each test has its own, with a containerd of its own.
    fn with_nerdctl(test: &str, scenario: fn(&Cli)) {
        let test = format!("nerdctl::{test}");
        let found = Command::new("nerdctl").arg("--version").output();
        if !found.is_ok_and(|output| text(&output.stdout).starts_with("nerdctl version ")) {
            return skipped(&test, "there is no nerdctl on the PATH");
        }
        let (version, bin) = match (V2_1.bin(), V1_6.bin()) {
            (Ok(bin), _) => (&V2_1, bin),
            (_, Ok(bin)) => (&V1_6, bin),
            (Err(why), _) => return skipped(&test, &why),
        };
        let containerd = Containerd::start(version, bin, test);
        scenario(&client(&containerd));
        containerd.assert_nothing_left();
    }

    fn client(containerd: &Containerd) -> Cli {
        let dir = &containerd.dir;
        let path = |name: &str| dir.join(name).display().to_string();
        let snapshotter = if can_overlay(dir) { "overlayfs" } else { "native" };
        let (address, data, networks) = (containerd.address(), path("nerdctl"), path("networks"));
        let global = [
            ["--address", &address],
            ["--namespace", &containerd.namespace],
            ["--snapshotter", snapshotter],
            ["--data-root", &data],
            ["--cni-netconfpath", &networks],
            ["--cgroup-manager", "cgroupfs"],
        ];
        Cli {
            program: ["nerdctl"].into_iter().chain(global.concat()).map(Into::into).collect(),
            // The machine's own configuration is not this test's.
            env: vec![("NERDCTL_TOML".into(), Path::new("/dev/null").into())],
            runtime: std::env::var("DRAY_RUNTIME").unwrap_or_else(|_| "io.containerd.dray.v2".into()),
            image: common::containerd::IMAGE.into(),
            options: vec!["--cgroup-parent".into(), containerd.cgroup.clone()],
            without_network: true,
            namespace: containerd.namespace.clone(),
            address,
            cgroup: containerd.cgroup.clone(),
        }
    }

    macro_rules! scenarios {
        ($($test:ident)*) => {
            $(#[test]
            fn $test() {
                with_nerdctl(stringify!($test), scenarios::$test);
            })*
        };
    }

    common::each_scenario!(scenarios stats_tell_what_it_uses);
}
