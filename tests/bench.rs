//! The bench of scripts/bench: shim binaries driven through ttrpc as containerd would, in turn, so that a noisy
//! machine is noisy for each of them. A measurement, never a test: nothing here fails because it was slow.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::bundle::Bundle;
use common::driver::{Shim, StartOptions, await_exit, open_pid, runc_options};
use common::events::EventSink;
use common::floor;
use common::scratch::{Scratch, cgroup_mounts, remove_cgroup};
use common::stdio::Io;
use nix::sys::signal::{SigSet, Signal};

const USAGE: &str = "\
usage: scripts/bench [--quick] [--runs N] [--execs N] [--idle N] [--peer runc|crun]... [--stdio null|fifo]
                     [--shim PATH] [--peers-only]
  --quick       few runs, to see that it works
  --runs N      whole lives of a container per shim (default 100)
  --execs N     execs per shim (default 200)
  --idle N      idle shims of each kind for memory (default 20)
  --peer NAME   a runtime below containerd-shim-runc-v2 to compare with; may be repeated (default runc)
  --stdio KIND  the processes' stdio: null, or fifos with readers (default null)
  --shim PATH   another binary of this shim
  --peers-only  without this shim; the first peer takes its column";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|flag| flag == floor::FLAG) {
        return floor::run_child(&args[1..]).unwrap_or_else(|e| panic!("{args:?}: {e}"));
    }
    catch_interrupts();
    let settings = Settings::from_args();
    let outcome = common::block_on(async {
        let lives = measure_lives(&settings).await?;
        let execs = measure_execs(&settings).await?;
        let idle = measure_idle(&settings).await?;
        let floor = measure_floor(&settings).await?;
        Ok::<_, String>(([lives, execs, idle].concat(), floor))
    });
    match outcome {
        Ok((rows, floor)) => {
            print_table(&settings, &rows);
            let [life, exec] = floor.map(|samples| median(samples) * 1e3);
            println!("\nFor scale, the bare system calls without cgroups: {life:.2} ms a life, {exec:.2} ms an exec.");
        }
        Err(e) => {
            eprintln!("bench: {e}");
            std::process::exit(1);
        }
    }
}

struct Settings {
    candidates: Vec<Candidate>,
    runs: usize,
    execs: usize,
    idle: usize,
    fifos: bool,
}

/// A shim binary with its options: one column of the table.
struct Candidate {
    name: String,
    binary: PathBuf,
    options: StartOptions,
}

impl Settings {
    fn from_args() -> Settings {
        let (mut peers, mut shim, mut peers_only) = (Vec::new(), common::shim_binary(), false);
        let mut settings = Settings { candidates: Vec::new(), runs: 100, execs: 200, idle: 20, fifos: false };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let (flag, inline) = match arg.split_once('=') {
                Some((flag, value)) => (flag.to_string(), Some(value.to_string())),
                None => (arg, None),
            };
            let mut value = || inline.clone().or_else(|| args.next()).unwrap_or_else(|| usage(&flag));
            match flag.as_str() {
                "--bench" => {} // cargo's own.
                "--quick" => (settings.runs, settings.execs, settings.idle) = (10, 20, 4),
                "--runs" => settings.runs = number(&value()),
                "--execs" => settings.execs = number(&value()),
                "--idle" => settings.idle = number(&value()),
                "--peer" => peers.push(value()),
                "--shim" => shim = value().into(),
                "--stdio" => settings.fifos = value() == "fifo",
                "--peers-only" => peers_only = true,
                _ => usage(&flag),
            }
        }
        if peers.is_empty() {
            peers.push("runc".to_string());
        }
        if !peers_only {
            let options = StartOptions::default();
            settings.candidates.push(Candidate { name: "dray".to_string(), binary: shim, options });
        }
        settings.candidates.extend(peers.iter().map(|name| Candidate::peer(name)));
        settings
    }

    fn io(&self, scratch: &Scratch, name: &str) -> Io {
        if self.fifos { Io::fifos(scratch, name) } else { Io::null() }
    }
}

fn usage<T>(flag: &str) -> T {
    eprintln!("{flag}?\n{USAGE}");
    std::process::exit(2);
}

fn number(text: &str) -> usize {
    text.parse().ok().filter(|&n| n > 0).unwrap_or_else(|| usage(text))
}

impl Candidate {
    /// containerd's shim with this OCI runtime below it.
    fn peer(runtime: &str) -> Candidate {
        let find = |name: &str| {
            let path = std::env::var("PATH").unwrap_or_default();
            let mut found = path.split(':').map(|dir| Path::new(dir).join(name)).filter(|file| file.exists());
            found.next().unwrap_or_else(|| usage(name))
        };
        find(runtime);
        let binary_name = if runtime == "runc" { "" } else { runtime };
        let options = StartOptions { options: Some(runc_options(binary_name)), ..StartOptions::default() };
        Candidate { name: runtime.to_string(), binary: find("containerd-shim-runc-v2"), options }
    }

    /// A container of `ctr run`'s defaults that is running `args`.
    async fn running(&self, scratch: &Scratch, args: &[&str]) -> Result<Container, String> {
        let sink = EventSink::start(scratch);
        let bundle = Bundle::new(scratch, "bench").args(args);
        let shim = Shim::start_with(&self.binary, &bundle, &sink, self.options.clone()).await?;
        shim.create(&bundle, &Io::null()).await.map_err(|e| self.failed("create", e))?;
        shim.start("bench", "").await.map_err(|e| self.failed("start", e))?;
        let pid = shim.pid().await.map_err(|e| self.failed("connect", e))?;
        Ok(Container { shim, pid, bundle, _sink: sink })
    }

    fn failed(&self, step: &str, error: impl std::fmt::Display) -> String {
        format!("{}: {step}: {error}", self.name)
    }
}

/// A running container with its shim; the drop order of the fields is that of ending it.
struct Container {
    shim: Shim,
    pid: i32,
    bundle: Bundle,
    _sink: EventSink,
}

impl Container {
    async fn end(self) -> ttrpc::Result<()> {
        let exited = self.shim.spawn_wait("bench", "").await;
        self.shim.kill("bench", "", libc::SIGKILL, true).await?;
        let _ = exited.await;
        self.shim.delete("bench", "").await?;
        self.shim.shutdown_and_wait(Duration::from_secs(10)).await.map_err(ttrpc::Error::Others)
    }
}

/// A line of the table: for each candidate the samples of its runs, in the order of the runs.
#[derive(Clone)]
struct Row {
    what: &'static str,
    unit: Unit,
    samples: Vec<Vec<f64>>,
}

#[derive(Clone, Copy)]
enum Unit {
    Seconds,
    Bytes,
    Count,
}

impl Row {
    fn new(what: &'static str, unit: Unit, settings: &Settings) -> Row {
        Row { what, unit, samples: vec![Vec::new(); settings.candidates.len()] }
    }

    /// Times were taken in pairs, one right after the other, and noise hits both; sizes were not.
    fn ratio(&self, ours: &[f64], theirs: &[f64]) -> f64 {
        match self.unit {
            Unit::Seconds => median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()),
            Unit::Bytes | Unit::Count => mean(ours) / mean(theirs),
        }
    }
}

/// Runs that warm the page cache and the branch predictors, and are not counted.
const WARM_UP: usize = 3;

const LIFE: [&str; 6] = ["start action", "create", "start", "exit", "delete", "whole life"];

async fn measure_lives(settings: &Settings) -> Result<Vec<Row>, String> {
    let mut rows = LIFE.map(|what| Row::new(what, Unit::Seconds, settings)).to_vec();
    for run in 0..settings.runs + WARM_UP {
        for (column, candidate) in settings.candidates.iter().enumerate() {
            let times = one_life(settings, candidate).await?;
            for (row, time) in rows.iter_mut().zip(times).filter(|_| run >= WARM_UP) {
                row.samples[column].push(time.as_secs_f64());
            }
        }
        progress("life", run, settings.runs + WARM_UP)?;
    }
    Ok(rows)
}

/// From the start action to the answer to Shutdown, for a container that runs `true`. Making the bundle, reading the
/// shim's pid and waiting for its end are not counted: they are the bench's own.
async fn one_life(settings: &Settings, candidate: &Candidate) -> Result<[Duration; 6], String> {
    let scratch = Scratch::new();
    let sink = EventSink::start(&scratch);
    let bundle = Bundle::new(&scratch, "bench");
    let io = settings.io(&scratch, "bench");
    let mut watch = Watch::new();

    let shim = Shim::start_with(&candidate.binary, &bundle, &sink, candidate.options.clone()).await?;
    let start_action = watch.lap();
    shim.create(&bundle, &io).await.map_err(|e| candidate.failed("create", e))?;
    let create = watch.lap();
    let pid = shim.pid().await.map_err(|e| candidate.failed("connect", e))?;
    let shim_process = open_pid(pid);
    watch.skip();
    let waiting = shim.spawn_wait("bench", "").await;
    shim.start("bench", "").await.map_err(|e| candidate.failed("start", e))?;
    let start = watch.lap();
    let exit = waiting.await.map_err(|e| e.to_string())?.map_err(|e| candidate.failed("wait", e))?;
    let exited = watch.lap();
    shim.delete("bench", "").await.map_err(|e| candidate.failed("delete", e))?;
    let delete = watch.lap();
    let _ = shim.shutdown("bench", false).await; // The answer may be lost with the connection.
    watch.lap();

    if exit.exit_status != 0 {
        return Err(candidate.failed("`true` ended with", exit.exit_status));
    }
    if let Some(process) = shim_process {
        await_exit(&process, Duration::from_secs(10)).map_err(|e| candidate.failed("shutdown", e))?;
    }
    Ok([start_action, create, start, exited, delete, watch.total])
}

/// A stopwatch whose total leaves out what is skipped.
struct Watch {
    since: Instant,
    total: Duration,
}

impl Watch {
    fn new() -> Watch {
        Watch { since: Instant::now(), total: Duration::ZERO }
    }

    fn lap(&mut self) -> Duration {
        let lap = self.since.elapsed();
        self.total += lap;
        self.since = Instant::now();
        lap
    }

    fn skip(&mut self) {
        self.since = Instant::now();
    }
}

/// Exec, Start, Wait and Delete of `true`; and the CPU time of all that took part: shim, runtime, the process itself.
async fn measure_execs(settings: &Settings) -> Result<Vec<Row>, String> {
    let mut times = Row::new("exec to exit", Unit::Seconds, settings);
    let mut cpu = Row::new("CPU per exec", Unit::Seconds, settings);
    let scratches: Vec<_> = settings.candidates.iter().map(|_| Scratch::new()).collect();
    let (mut containers, mut accounts) = (Vec::new(), Vec::new());
    for (candidate, scratch) in settings.candidates.iter().zip(&scratches) {
        let container = candidate.running(scratch, &["sleep", "100000"]).await?;
        accounts.push(Account::open(scratch, container.pid));
        containers.push(container);
    }
    let mut before = Vec::new();
    for run in 0..settings.execs + WARM_UP {
        if run == WARM_UP {
            before = accounts.iter().map(|account| account.as_ref().and_then(Account::cpu)).collect();
        }
        for (column, candidate) in settings.candidates.iter().enumerate() {
            let container = &containers[column];
            let (process, id) = (container.bundle.process(&["true"]), format!("exec-{run}"));
            let io = settings.io(&scratches[column], &id);
            let since = Instant::now();
            let exit = container.shim.exec_to_exit("bench", &id, &process, &io).await;
            let time = since.elapsed();
            match exit.map_err(|e| candidate.failed("exec", e))?.exit_status {
                0 if run >= WARM_UP => times.samples[column].push(time.as_secs_f64()),
                0 => {}
                status => return Err(candidate.failed("an exec of `true` ended with", status)),
            }
        }
        progress("exec", run, settings.execs + WARM_UP)?;
    }
    tokio::time::sleep(Duration::from_millis(300)).await; // Events and clean-up after the last answer count as well.
    for (column, account) in accounts.iter().enumerate() {
        if let Some((before, after)) = before[column].zip(account.as_ref().and_then(Account::cpu)) {
            cpu.samples[column].push((after - before).as_secs_f64() / settings.execs as f64);
        }
    }
    for (candidate, container) in settings.candidates.iter().zip(containers) {
        container.end().await.map_err(|e| candidate.failed("end", e))?;
    }
    Ok(vec![times, cpu])
}

/// CPU time of a shim with all its children: the cgroup above the container's, with the shim in a child of it.
struct Account {
    shim: PathBuf,
    usage: PathBuf,
    /// In one unit of `usage`.
    nanoseconds: u64,
}

impl Account {
    /// None where no hierarchy accounts CPU time; the row is left out then.
    fn open(scratch: &Scratch, shim: i32) -> Option<Account> {
        let root_with = |file: &str| cgroup_mounts().into_iter().find(|root| root.join(file).exists());
        let (root, file, nanoseconds) = match root_with("cpuacct.usage") {
            Some(root) => (root, "cpuacct.usage", 1),
            None => (root_with("cgroup.controllers")?, "cpu.stat", 1000),
        };
        let parent = root.join(scratch.namespace());
        let account = Account { shim: parent.join("shim"), usage: parent.join(file), nanoseconds };
        fs::create_dir_all(&account.shim).ok()?;
        fs::write(account.shim.join("cgroup.procs"), shim.to_string()).ok()?;
        Some(account)
    }

    fn cpu(&self) -> Option<Duration> {
        let text = fs::read_to_string(&self.usage).ok()?;
        let number: u64 = text.trim_start_matches("usage_usec ").lines().next()?.parse().ok()?;
        Some(Duration::from_nanos(self.nanoseconds * number))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if fs::read_to_string(self.shim.join("cgroup.procs")).is_ok_and(|members| members.is_empty()) {
            remove_cgroup(&self.shim);
        }
    }
}

const IDLE: [(&str, Unit); 5] = [
    ("idle shim: PSS", Unit::Bytes),
    ("idle shim: private", Unit::Bytes),
    ("idle shim: private dirty", Unit::Bytes),
    ("idle shim: resident", Unit::Bytes),
    ("idle shim: threads", Unit::Count),
];

async fn measure_idle(settings: &Settings) -> Result<Vec<Row>, String> {
    let mut rows = IDLE.map(|(what, unit)| Row::new(what, unit, settings)).to_vec();
    for (column, candidate) in settings.candidates.iter().enumerate() {
        let mut containers = Vec::new();
        for run in 0..settings.idle {
            containers.push(candidate.running(&Scratch::new(), &["sleep", "100000"]).await?);
            progress("idle", column * settings.idle + run, settings.candidates.len() * settings.idle)?;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        for container in &containers {
            let sizes = resident(container.pid).map_err(|e| candidate.failed("smaps_rollup", e))?;
            rows.iter_mut().zip(sizes).for_each(|(row, size)| row.samples[column].push(size));
        }
        for container in containers {
            container.end().await.map_err(|e| candidate.failed("end", e))?;
        }
    }
    Ok(rows)
}

/// PSS, private, private dirty and RSS in bytes, and the number of threads.
fn resident(pid: i32) -> std::io::Result<[f64; 5]> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        kib.unwrap_or(f64::NAN) * 1024.0
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count() as f64;
    let dirty = field("Private_Dirty");
    Ok([field("Pss"), dirty + field("Private_Clean"), dirty, field("Rss"), threads])
}

/// Seconds of the kernel's own work, of a life and of an exec.
async fn measure_floor(settings: &Settings) -> Result<[Vec<f64>; 2], String> {
    let (mut lives, mut execs) = (Vec::new(), Vec::new());
    let host = Scratch::new();
    let container = settings.candidates[0].running(&host, &["sleep", "100000"]).await?;
    let init = container.shim.state("bench", "").await.map_err(|e| e.to_string())?.pid;
    for _ in 0..settings.runs {
        let scratch = Scratch::new();
        lives.push(floor::life(&Bundle::new(&scratch, "floor")).map_err(|e| e.to_string())?.as_secs_f64());
        execs.push(floor::exec(init).map_err(|e| e.to_string())?.as_secs_f64());
    }
    container.end().await.map_err(|e| e.to_string())?;
    Ok([lives, execs])
}

/// Set by SIGINT, SIGTERM or SIGHUP.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// An interrupted bench ends between two runs, so that its containers and shims are cleaned up.
fn catch_interrupts() {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().expect("block signals");
    std::thread::spawn(move || {
        let _ = signals.wait();
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
}

fn progress(what: &str, done: usize, all: usize) -> Result<(), String> {
    if std::io::stderr().is_terminal() {
        eprint!("\r{what} {}/{all}  {}", done + 1, if done + 1 == all { "\n" } else { "" });
    }
    if INTERRUPTED.load(Ordering::Relaxed) { Err("interrupted".to_string()) } else { Ok(()) }
}

fn print_table(settings: &Settings, rows: &[Row]) {
    let command = std::env::var("DRAY_BENCH_COMMAND").unwrap_or_else(|_| "cargo bench --test bench".to_string());
    let Settings { runs, execs, idle, .. } = settings;
    let stdio = if settings.fifos { "through fifos" } else { "null" };
    println!("`{command}`: medians of {runs} lives and {execs} execs, taken in turn, and of their paired ratios;");
    println!("means over {idle} idle shims. The container runs `true` (idle: `sleep`) by `ctr run`'s default");
    println!("specification, rootfs an overlay, stdio {stdio}. {}.\n", versions(settings));
    let names: Vec<_> = settings.candidates.iter().map(|candidate| candidate.name.as_str()).collect();
    let ratios: Vec<_> = names[1..].iter().map(|peer| format!("{}/{peer}", names[0])).collect();
    let columns = [&names.iter().map(ToString::to_string).collect::<Vec<_>>()[..], &ratios[..]].concat();
    println!("| | {} |\n|---{}|", columns.join(" | "), "|---:".repeat(columns.len()));
    for row in rows.iter().filter(|row| row.samples.iter().all(|samples| !samples.is_empty())) {
        let values = row.samples.iter().map(|samples| match row.unit {
            Unit::Seconds => format!("{:.2} ms", median(samples.clone()) * 1e3),
            Unit::Bytes => format!("{:.2} MB", mean(samples) / 1e6),
            Unit::Count => format!("{:.1}", mean(samples)),
        });
        let ratios = row.samples[1..].iter().map(|peer| format!("{:.2}", row.ratio(&row.samples[0], peer)));
        println!("| {} | {} |", row.what, values.chain(ratios).collect::<Vec<_>>().join(" | "));
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    if samples.len() % 2 == 1 { samples[middle] } else { (samples[middle - 1] + samples[middle]) / 2.0 }
}

fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// What it ran on and with, in one line.
fn versions(settings: &Settings) -> String {
    let first_line = |command: &Path, flags: &str| {
        let output = Command::new(command).arg(flags).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_string())
    };
    let last_word = |line: String| line.split_whitespace().last().map(ToString::to_string);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut parts = vec![
        first_line(Path::new("uname"), "-srm").unwrap_or_default(),
        format!("{} CPUs", std::thread::available_parallelism().map_or(0, |n| n.get())),
        format!("load {}", load.split(' ').next().unwrap_or_default()),
    ];
    let containerd = first_line(Path::new("containerd"), "--version").and_then(last_word);
    parts.extend(containerd.map(|version| format!("containerd {version}")));
    for candidate in settings.candidates.iter().filter(|candidate| candidate.options.options.is_some()) {
        let version = first_line(Path::new(&candidate.name), "--version").and_then(last_word);
        parts.extend(version.map(|version| format!("{} {version}", candidate.name)));
    }
    parts.join(", ")
}
