//! `dray ps`
//!
//! The one verb beside hooks, loggers and criu that runs a program: ps(1) of the host, found on the PATH, whose lines of the
//! container's processes are printed, as runc does it. Callers give it ps's own options, and read its columns.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::Global;
use super::output::{self, Format};
use super::target::{self, Found};
use crate::error::{Error, Kind, Os, Result};
use crate::sys::exec::find;
use crate::sys::spawn::{Program, spawn};

/// Lists the processes of a container.
#[derive(Debug, Args)]
pub struct Ps {
    /// How; as a table: as ps(1) prints it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// The container
    id: String,
    /// Options for ps(1) [default: -ef]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS OPTIONS")]
    options: Vec<OsString>,
}

/// Runs it.
///
/// # Errors
/// `NotFound`; what ps says.
pub fn run(global: &Global, args: Ps) -> Result<ExitCode> {
    let pids = pids(&target::find(global, &args.id)?)?;
    output::print(&match args.format {
        // Go's of a slice that nothing was appended to.
        Format::Json if pids.is_empty() => "null\n".to_owned(),
        Format::Json => output::line(&pids)?,
        Format::Table => lines_of(&pids, &ps(args.options)?)?,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What is in its cgroup, and its init wherever that is.
fn pids(found: &Found) -> Result<Vec<u32>> {
    let mut pids = found.cgroup()?.map_or(Ok(Vec::new()), |cgroup| cgroup.procs())?;
    let init = found.living_init().map(|init| init.pid as u32);
    pids.extend(init.filter(|init| !pids.contains(init)));
    pids.sort_unstable();
    Ok(pids)
}

/// The output of ps.
fn ps(options: Vec<OsString>) -> Result<String> {
    let (output, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).os(|| "pipe2")?;
    let null = File::open("/dev/null").os(|| "open /dev/null")?;
    let nul = |_| Error::new(Kind::InvalidArgument, "an option of ps has a NUL byte");
    let strings = |list: Vec<OsString>| {
        list.into_iter()
            .map(|word| CString::new(word.into_vec()))
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(nul)
    };
    let options = if options.is_empty() { vec!["-ef".into()] } else { options };
    let environment = std::env::vars_os().map(|(name, value)| {
        let mut word = name;
        word.push("=");
        word.push(value);
        word
    });
    let program = Program {
        path: CString::new(program()?.as_os_str().as_bytes()).map_err(nul)?,
        args: strings(std::iter::once("ps".into()).chain(options).collect())?,
        env: strings(environment.collect())?,
        fds: vec![null.into(), input.try_clone().os(|| "dup")?, input],
        cwd: None,
        die_with_parent: true,
    };
    let spawned = spawn(&program)?;
    drop(program); // Its end of the pipe.
    let mut text = Vec::new();
    File::from(output).read_to_end(&mut text).os(|| "read ps's output")?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let ended = waitid(WaitId::PidFd(spawned.child.pidfd.as_fd()), WaitIdOptions::EXITED).os(|| "waitid")?;
    if let Some(error) = spawned.refused() {
        return Err(error);
    }
    match ended.and_then(|ended| ended.exit_status()) {
        Some(0) => Ok(text),
        status => {
            let how = status.map_or("killed".to_owned(), |status| format!("exit status {status}"));
            Err(Error::new(Kind::Internal, format!("ps: {how}: {}", text.trim_end())))
        }
    }
}

/// ps on the PATH.
fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    find("ps", &path).ok_or_else(|| Error::new(Kind::NotFound, "exec: \"ps\": executable file not found in $PATH"))
}

/// The title and the lines of these processes.
fn lines_of(pids: &[u32], text: &str) -> Result<String> {
    let mut lines = text.lines();
    let title = lines.next().unwrap_or_default();
    let missing = || Error::new(Kind::InvalidArgument, "couldn't find PID field in ps output");
    let column = title.split_ascii_whitespace().position(|name| name == "PID").ok_or_else(missing)?;
    let mut wanted = format!("{title}\n");
    for line in lines.filter(|line| !line.is_empty()) {
        let field = line.split_ascii_whitespace().nth(column).unwrap_or_default();
        let bad = |_| Error::new(Kind::InvalidArgument, format!("unable to parse pid: {field:?}"));
        if pids.contains(&field.parse().map_err(bad)?) {
            wanted.push_str(line);
            wanted.push('\n');
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_chosen_by_their_pid() {
        let text = "UID        PID  PPID CMD\nroot         1     0 init 12\nroot        12     1 sh\n";
        assert_eq!(lines_of(&[12], text).unwrap(), "UID        PID  PPID CMD\nroot        12     1 sh\n");
        assert!(lines_of(&[12], "CMD\nsh\n").unwrap_err().to_string().contains("couldn't find PID field"));
        assert!(lines_of(&[12], "PID\nsh\n").unwrap_err().to_string().contains("unable to parse pid"));
    }
}
