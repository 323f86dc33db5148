//! The attack on processes that are on their way into a container, from inside of it.

/// Looks at every process that appears, as early as it can be seen, until `/stop` is there.
pub fn watch_newcomers(caught: impl Fn(u32) -> bool) {
    println!("watching");
    let mut next = std::process::id() + 1;
    let (mut found, mut seen) = (0, 0);
    while !std::path::Path::new("/stop").exists() {
        for _ in 0..1000 {
            // Threads and processes that came and went leave holes.
            let Some(pid) = (next..next + 8).find(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists()) else {
                continue;
            };
            next = pid + 1;
            seen += 1;
            // From here on it is ours to look at for as long as we like: CAP_KILL is a default capability.
            let process = rustix::process::Pid::from_raw(pid as i32).unwrap();
            let _ = rustix::process::kill_process(process, rustix::process::Signal::STOP);
            found += u32::from(caught(pid));
            let _ = rustix::process::kill_process(process, rustix::process::Signal::CONT);
        }
    }
    println!("seen={seen} caught={found}");
}
