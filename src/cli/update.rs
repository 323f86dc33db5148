//! `dray update`

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use super::Global;
use super::runtime::unless_ended;
use super::status::not_running;
use super::target::{self, Owner};
use crate::cgroup::resctrl;
use crate::engine::adopt::Status;
use crate::error::{Error, Kind, Os, Result};

/// No document of resources is longer.
const MOST: u64 = 4 << 20;

/// Changes the limits of a container.
#[derive(Debug, Args)]
pub struct Update {
    /// File with the resources, an object like `linux.resources` of config.json, or `-` for stdin; the other flags for cgroups
    /// are not looked at then
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    #[command(flatten)]
    limits: Limits,
    /// Schema of the L3 cache (Intel RDT)
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Schema of the memory's bandwidth (Intel RDT)
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// The container
    id: String,
}

/// What is said of cgroups. Empty is as if it were not said.
#[derive(Debug, Default, Args)]
struct Limits {
    /// Weight of block I/O, 10 to 1000
    #[arg(long, default_value_t, hide_default_value = true, value_name = "WEIGHT")]
    blkio_weight: u16,
    /// Period of the CPU quota, in microseconds
    #[arg(long, value_name = "USECS")]
    cpu_period: Option<String>,
    /// CPU time in each period, in microseconds
    #[arg(long, value_name = "USECS", allow_hyphen_values = true)]
    cpu_quota: Option<String>,
    /// CPU time that may be saved up for a later period, in microseconds
    #[arg(long, value_name = "USECS")]
    cpu_burst: Option<String>,
    /// Weight among those that want the CPU
    #[arg(long, value_name = "WEIGHT")]
    cpu_share: Option<String>,
    /// Period of the realtime quota, in microseconds
    #[arg(long, value_name = "USECS")]
    cpu_rt_period: Option<String>,
    /// Realtime in each period, in microseconds
    #[arg(long, value_name = "USECS", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<String>,
    /// CPUs
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// 1 for SCHED_IDLE
    #[arg(long, value_name = "0|1", allow_hyphen_values = true)]
    cpu_idle: Option<String>,
    /// Memory, in bytes, or with k, m, g, t, p; -1 for no limit
    #[arg(short, long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Memory that is left to it while others want more
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_reservation: Option<String>,
    /// Memory and swap together; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Tasks; -1 for no limit
    #[arg(long, default_value_t, hide_default_value = true, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: i64,
    /// Does nothing any more, as in runc
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
    /// Does nothing any more, as in runc
    #[arg(long, hide = true)]
    kernel_memory_tcp: Option<String>,
}

/// Runs it.
///
/// # Errors
/// "container not running"; `InvalidArgument` for a flag or what the file says.
pub fn run(global: &Global, args: Update) -> Result<ExitCode> {
    let mut resources = match &args.resources {
        Some(path) => read(path)?,
        None => args.limits.resources()?,
    };
    unlimit_swap(&mut resources);
    let resources = resources.to_string().into_bytes();
    let [l3, bandwidth] = [&args.l3_cache_schema, &args.mem_bw_schema].map(|flag| flag.as_deref().and_then(said));
    target::change(global, &args.id, async |target, engine, mut signals| {
        match unless_ended(&mut signals, target.found.status()).await? {
            Status::Created | Status::Running | Status::Paused => {}
            _ => return Err(not_running(&args.id)),
        }
        let rdt = (l3.is_some() || bandwidth.is_some())
            .then(|| resctrl::Change::plan(&target.found.saved.resctrl, l3, bandwidth));
        let rdt = rdt.transpose()?;
        match &target.owner {
            Owner::Shim(shim) => unless_ended(&mut signals, shim.update(&args.id, resources)).await?,
            Owner::Nobody(_) => unless_ended(&mut signals, engine.update(&args.id, &resources)).await?,
        }
        // No shim's business: the group is named in the state, and a shim never changes it.
        rdt.map_or(Ok(()), |rdt| rdt.make())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The document of `--resources`.
fn read(path: &Path) -> Result<Value> {
    let mut text = Vec::new();
    let name = || format!("--resources {}", path.display());
    let read = match path == Path::new("-") {
        true => std::io::stdin().lock().take(MOST).read_to_end(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut text)),
    };
    read.os(name)?;
    serde_json::from_slice(&text).map_err(|e| Error::new(Kind::InvalidArgument, format!("{}: {e}", name())))
}

/// On v1 the limit of both cannot be below that of memory: who lifts that means both.
fn unlimit_swap(resources: &mut Value) {
    let Some(memory) = resources.get_mut("memory").and_then(Value::as_object_mut) else { return };
    let is_said = |key: &str, memory: &Map<String, Value>| memory.get(key).is_some_and(|value| !value.is_null());
    if memory.get("limit") == Some(&json!(-1)) && !is_said("swap", memory) {
        memory.insert("swap".to_owned(), json!(-1));
    }
}

fn said(flag: &str) -> Option<&str> {
    (!flag.is_empty()).then_some(flag)
}

impl Limits {
    /// As a member of the specification.
    fn resources(&self) -> Result<Value> {
        for (name, flag) in [("kernel-memory", &self.kernel_memory), ("kernel-memory-tcp", &self.kernel_memory_tcp)] {
            if flag.as_deref().and_then(said).is_some() {
                log::warn!("Setting --{name} is ignored and will be removed");
            }
        }
        let mut cpu = Map::new();
        for (flag, key, value, signed) in [
            ("cpu-period", "period", &self.cpu_period, false),
            ("cpu-quota", "quota", &self.cpu_quota, true),
            ("cpu-burst", "burst", &self.cpu_burst, false),
            ("cpu-share", "shares", &self.cpu_share, false),
            ("cpu-rt-period", "realtimePeriod", &self.cpu_rt_period, false),
            ("cpu-rt-runtime", "realtimeRuntime", &self.cpu_rt_runtime, true),
            ("cpu-idle", "idle", &self.cpu_idle, true),
        ] {
            let Some(text) = value.as_deref().and_then(said) else { continue };
            let number =
                if signed { text.parse::<i64>().map(Value::from) } else { text.parse::<u64>().map(Value::from) };
            cpu.insert(key.to_owned(), number.map_err(|e| invalid(flag, format!("{text:?}: {e}")))?);
        }
        for (key, value) in [("cpus", &self.cpuset_cpus), ("mems", &self.cpuset_mems)] {
            cpu.extend(value.as_deref().and_then(said).map(|list| (key.to_owned(), list.into())));
        }
        let mut memory = Map::new();
        for (flag, key, value) in [
            ("memory", "limit", &self.memory),
            ("memory-reservation", "reservation", &self.memory_reservation),
            ("memory-swap", "swap", &self.memory_swap),
        ] {
            let Some(text) = value.as_deref().and_then(said) else { continue };
            let size = if text == "-1" { Some(-1) } else { bytes(text) };
            let size = size.ok_or_else(|| invalid(flag, format!("invalid size: '{text}'")))?;
            memory.insert(key.to_owned(), size.into());
        }
        let mut resources = Map::new();
        let objects = [("cpu", cpu), ("memory", memory)];
        resources.extend(
            objects.into_iter().filter(|(_, object)| !object.is_empty()).map(|(k, v)| (k.to_owned(), v.into())),
        );
        if self.blkio_weight != 0 {
            resources.insert("blockIO".to_owned(), json!({ "weight": self.blkio_weight }));
        }
        if self.pids_limit != 0 {
            resources.insert("pids".to_owned(), json!({ "limit": self.pids_limit }));
        }
        Ok(resources.into())
    }
}

fn invalid(flag: &str, why: String) -> Error {
    Error::new(Kind::InvalidArgument, format!("invalid value for {flag}: {why}"))
}

/// A size as docker/go-units' RAMInBytes reads it: a number that may have a fraction, and a unit of 1024s, `k` to `p`, with
/// or without `b` or `ib` behind it, whatever their case.
fn bytes(text: &str) -> Option<i64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let power = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let scale = 1024_i64.pow(power);
    match number.parse::<i64>() {
        Ok(number) => number.checked_mul(scale),
        // Never negative: there was no sign. What is too large for an i64 is no size.
        Err(_) => {
            number.parse::<f64>().ok().map(|n| n * scale as f64).filter(|n| *n < i64::MAX as f64).map(|n| n as i64)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        update: Update,
    }

    fn resources(flags: &str) -> Result<Value> {
        let args = std::iter::once("update").chain(flags.split_whitespace()).chain(["id"]);
        let mut resources = Command::try_parse_from(args).unwrap().update.limits.resources()?;
        unlimit_swap(&mut resources);
        Ok(resources)
    }

    #[test]
    fn sizes_are_those_of_go_units() {
        let sizes = [("0", 0), ("32", 32), ("32b", 32), ("32k", 32 << 10), ("32Kb", 32 << 10), ("1.5m", 3 << 19)];
        for (text, size) in sizes.into_iter().chain([("32 GiB", 32 << 30), ("2T", 2 << 40), ("1p", 1 << 50)]) {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        for text in ["", "k", "20x", "1kk", "-5", "99999999999p", "1 2", "1..2"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn every_flag_has_its_place() {
        let flags = "--blkio-weight 10 --cpu-period 1 --cpu-quota -1 --cpu-burst 2 --cpu-share 3 --cpu-rt-period 4 \
            --cpu-rt-runtime 5 --cpuset-cpus 0-1 --cpuset-mems 0 --cpu-idle 1 --memory-reservation 1k --memory-swap 2k -m 1k \
            --pids-limit -1";
        let wanted = json!({
            "blockIO": { "weight": 10 },
            "cpu": { "period": 1, "quota": -1, "burst": 2, "shares": 3, "realtimePeriod": 4, "realtimeRuntime": 5,
                "cpus": "0-1", "mems": "0", "idle": 1 },
            "memory": { "limit": 1024, "reservation": 1024, "swap": 2048 },
            "pids": { "limit": -1 },
        });
        assert_eq!(resources(flags).unwrap(), wanted);
        assert_eq!(resources("").unwrap(), json!({}));
        assert_eq!(resources("--memory -1").unwrap(), json!({ "memory": { "limit": -1, "swap": -1 } }));
        assert_eq!(resources("--memory -1 --memory-swap 1m").unwrap()["memory"]["swap"], json!(1 << 20));
        let error = resources("--memory 20x").unwrap_err().to_string();
        assert_eq!(error, "invalid value for memory: invalid size: '20x'");
        assert!(resources("--cpu-share -1").is_err() && resources("--cpu-idle yes").is_err());
    }
}
