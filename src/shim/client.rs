//! A client of a living shim's task service, for the command line: what the service says, in plain types.
//!
//! Every call has a bound but [`Client::wait`]'s. An error has the kind and the words that the shim has given it.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, ResizePtyRequest, ResumeRequest, StartRequest, StateRequest, StateResponse, Status as TaskStatus,
    UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::TaskClient;
use tokio::net::UnixStream;
use tokio::time::Instant;
use ttrpc::Code;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

use crate::engine::checkpoint;
use crate::engine::state::Identity;
use crate::engine::trace::Operation;
use crate::error::{Error, Kind, Os, Result};

use super::trace;

/// How long a shim may take to be connected to.
const CONNECT_BOUND: Duration = Duration::from_secs(5);

/// Between two tries, while the listener's backlog is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// For what a shim answers from its memory, or by one system call. A busy machine is slow all the same.
const QUESTION: Duration = Duration::from_secs(10);

/// For what takes its time and has its own bound in the shim, which is shorter: a freeze, a unit of systemd's.
const CHANGE: Duration = Duration::from_secs(60);

/// For a start and a delete, which run hooks and wait for mounts.
const LONG: Duration = Duration::from_secs(150);

/// For a checkpoint, which takes as long as there is memory to be written; it has its bound in the shim.
const CHECKPOINT: Duration = Duration::from_secs(2 * 3600);

/// The prefix of containerd's typeurl for the specification's types.
const SPEC_TYPES: &str = "types.containerd.io/opencontainers/runtime-spec/1/";

/// A connection to a shim.
#[derive(Clone)]
pub struct Client {
    task: TaskClient,
    /// The same connection, for what is no task service's.
    own: ttrpc::r#async::Client,
    namespace: String,
    pid: i32,
}

/// Where a process is in its life, as a shim says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Init: parked before its program. Exec: not born.
    Created,
    /// Its program runs.
    Running,
    /// On its way to stand still.
    Pausing,
    /// It stands still.
    Paused,
    /// It has ended.
    Stopped,
}

/// A process.
#[derive(Clone, Debug)]
pub struct ProcessState {
    /// Where it is in its life.
    pub status: Status,
    /// Its pid; 0 before its birth.
    pub pid: u32,
    /// As wait(2) has it, with 128 and the number for a signal; of a stopped one.
    pub exit_status: u32,
}

/// Where the streams of an exec go: paths of fifos, or nothing for none.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    /// Its stdin.
    pub stdin: String,
    /// Its stdout, or all output of its terminal.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
    /// It has a terminal, which is the shim's.
    pub terminal: bool,
}

impl Client {
    /// Connects to the shim `owner`, which listens at `socket`, for containers of `namespace`.
    ///
    /// # Errors
    /// `Unavailable` when nobody answers there, or another process or user does; `DeadlineExceeded` when it does not in time.
    pub async fn connect(socket: &Path, namespace: &str, owner: &Identity) -> Result<Self> {
        let stream = connect(socket).await?;
        // A shim is of the user whose commands it takes (listener.rs). What the peer says of itself below may be a lie.
        let peer = stream.peer_cred().os(|| format!("SO_PEERCRED of {}", socket.display()))?.uid();
        if peer != rustix::process::geteuid().as_raw() {
            let text =
                format!("{}: a process of user {peer} listens there, not the shim {}", socket.display(), owner.pid);
            return Err(Error::new(Kind::Unavailable, text));
        }
        let own = ttrpc::r#async::Client::new(Socket::from(stream));
        let task = TaskClient::new(own.clone());
        let client = Self { task, own, namespace: namespace.to_owned(), pid: owner.pid };
        // The path may have been taken over since it was written down.
        let answer = client.task.connect(client.within(QUESTION), &ConnectRequest::new()).await.map_err(error)?;
        if answer.shim_pid != owner.pid as u32 {
            let text = format!("{}: process {} answers, not the shim {}", socket.display(), answer.shim_pid, owner.pid);
            return Err(Error::new(Kind::Unavailable, text));
        }
        Ok(client)
    }

    /// The shim's pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The state of a container's init (`exec` empty) or of an exec.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn state(&self, id: &str, exec: &str) -> Result<ProcessState> {
        let request = StateRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() };
        let state = self.task.state(self.within(QUESTION), &request).await.map_err(error)?;
        Ok(ProcessState { status: status(&state)?, pid: state.pid, exit_status: state.exit_status })
    }

    /// The pids of everything in a container, with the id of the exec that a pid is the process of.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn pids(&self, id: &str) -> Result<Vec<(u32, Option<String>)>> {
        let request = PidsRequest { id: id.to_owned(), ..Default::default() };
        let pids = self.task.pids(self.within(QUESTION), &request).await.map_err(error)?;
        let exec = |any: Any| ProcessDetails::parse_from_bytes(&any.value).ok().map(|details| details.exec_id);
        Ok(pids.processes.into_iter().map(|p| (p.pid, p.info.into_option().and_then(exec))).collect())
    }

    /// Sends a signal to a container's init or to an exec; SIGKILL to init is for all of the container.
    ///
    /// # Errors
    /// `NotFound` also when the process has ended: "process already finished".
    pub async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<()> {
        let (id, exec_id) = (id.to_owned(), exec.to_owned());
        let request = KillRequest { id, exec_id, signal, all, ..Default::default() };
        self.task.kill(self.within(QUESTION), &request).await.map(drop).map_err(error)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is not running or paused already; `DeadlineExceeded` when it does not stand still.
    pub async fn pause(&self, id: &str) -> Result<()> {
        let request = PauseRequest { id: id.to_owned(), ..Default::default() };
        self.task.pause(self.within(CHANGE), &request).await.map(drop).map_err(error)
    }

    /// Lets a frozen container go on.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is not paused.
    pub async fn resume(&self, id: &str) -> Result<()> {
        let request = ResumeRequest { id: id.to_owned(), ..Default::default() };
        self.task.resume(self.within(CHANGE), &request).await.map(drop).map_err(error)
    }

    /// Sets the limits that `resources` gives, a JSON document like `linux.resources`.
    ///
    /// # Errors
    /// `InvalidArgument` and `Unimplemented` for the document.
    pub async fn update(&self, id: &str, resources: Vec<u8>) -> Result<()> {
        let resources = MessageField::some(specified("LinuxResources", resources));
        let request = UpdateTaskRequest { id: id.to_owned(), resources, ..Default::default() };
        self.task.update(self.within(CHANGE), &request).await.map(drop).map_err(error)
    }

    /// Writes a container to images. What containerd's message has no words for is left out.
    ///
    /// # Errors
    /// `FailedPrecondition` for one that does not run; what CRIU says.
    pub async fn checkpoint(&self, request: checkpoint::Request) -> Result<()> {
        self.task
            .checkpoint(self.within(CHECKPOINT), &super::checkpoint::message(request))
            .await
            .map(drop)
            .map_err(error)
    }

    /// Records an exec: `process` is its specification, a JSON document.
    ///
    /// # Errors
    /// `AlreadyExists` for the exec's id, `InvalidArgument` and `Unimplemented` for the specification,
    /// `FailedPrecondition` for a container that has stopped or is paused.
    pub async fn exec(&self, id: &str, exec: &str, process: Vec<u8>, streams: &Streams) -> Result<()> {
        let Streams { stdin, stdout, stderr, terminal } = streams.clone();
        let spec = MessageField::some(specified("Process", process));
        let (id, exec_id) = (id.to_owned(), exec.to_owned());
        let request = ExecProcessRequest { id, exec_id, terminal, stdin, stdout, stderr, spec, ..Default::default() };
        self.task.exec(self.within(QUESTION), &request).await.map(drop).map_err(error)
    }

    /// Starts a container (`exec` empty) or an exec that was recorded. Returns its pid.
    ///
    /// # Errors
    /// What keeps its program from being executed.
    pub async fn start(&self, id: &str, exec: &str) -> Result<u32> {
        let request = StartRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() };
        self.task.start(self.within(LONG), &request).await.map(|started| started.pid).map_err(error)
    }

    /// Waits, as long as it takes, for the end of a process. Returns its exit status, 128 and the number for a signal.
    ///
    /// # Errors
    /// `NotFound`, also when it is deleted meanwhile; `Unavailable` when the shim has gone.
    pub async fn wait(&self, id: &str, exec: &str) -> Result<u32> {
        let request = WaitRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() };
        let exit = self.task.wait(self.within(Duration::ZERO), &request).await;
        exit.map(|exit| exit.exit_status).map_err(error)
    }

    /// Removes a container that has stopped or was never started, or an exec. Returns its exit status.
    ///
    /// # Errors
    /// `FailedPrecondition` for one that runs.
    pub async fn delete(&self, id: &str, exec: &str) -> Result<u32> {
        let request = DeleteRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() };
        let deleted: DeleteResponse = self.task.delete(self.within(LONG), &request).await.map_err(error)?;
        Ok(deleted.exit_status)
    }

    /// Gives a terminal another size.
    ///
    /// # Errors
    /// `FailedPrecondition` for a process without one.
    pub async fn resize(&self, id: &str, exec: &str, columns: u32, rows: u32) -> Result<()> {
        let (id, exec_id, width, height) = (id.to_owned(), exec.to_owned(), columns, rows);
        let request = ResizePtyRequest { id, exec_id, width, height, ..Default::default() };
        self.task.resize_pty(self.within(QUESTION), &request).await.map(drop).map_err(error)
    }

    /// Ends the stdin of a process.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn close_stdin(&self, id: &str, exec: &str) -> Result<()> {
        let (id, exec_id) = (id.to_owned(), exec.to_owned());
        let request = CloseIORequest { id, exec_id, stdin: true, ..Default::default() };
        self.task.close_io(self.within(QUESTION), &request).await.map(drop).map_err(error)
    }

    /// Where the time of the last operations on a container went, or of the start of one of its execs.
    ///
    /// # Errors
    /// `NotFound`; `Unimplemented` from a shim of a version that keeps no traces.
    pub async fn trace(&self, id: &str, exec: Option<&str>) -> Result<Vec<Operation>> {
        let payload = trace::question(id, exec).write_to_bytes();
        let request = ttrpc::Request {
            service: trace::SERVICE.to_owned(),
            method: trace::METHOD.to_owned(),
            payload: payload.map_err(|e| Error::new(Kind::Internal, e.to_string()))?,
            timeout_nano: QUESTION.as_nanos() as i64,
            ..Default::default()
        };
        let answer = self.own.request(request).await.map_err(|e| match &e {
            // So the ttrpc crate says that it does not know the service.
            ttrpc::Error::RpcStatus(status) if status.message().contains(trace::SERVICE) => {
                Error::new(Kind::Unimplemented, "this shim is of a version that keeps no traces")
            }
            _ => error(e),
        })?;
        let answer = Any::parse_from_bytes(&answer.payload).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        trace::answer(&answer)
    }

    /// A call's bound; zero is none.
    fn within(&self, bound: Duration) -> Context {
        let mut context = ttrpc::context::with_duration(bound);
        context.set("containerd-namespace-ttrpc".to_owned(), vec![self.namespace.clone()]);
        context
    }
}

async fn connect(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_BOUND;
    loop {
        // tokio's, for its connect does not block when the listener's backlog is full; ttrpc's own does.
        match UnixStream::connect(socket).await {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            connected => {
                let connected = connected.os(|| format!("connect {}", socket.display()));
                return connected.map_err(|e| e.with_kind(Kind::Unavailable).context("the shim does not answer"));
            }
        }
    }
}

/// A document of the specification's, as containerd's typeurl has it.
fn specified(name: &str, document: Vec<u8>) -> Any {
    Any { type_url: format!("{SPEC_TYPES}{name}"), value: document, ..Default::default() }
}

fn status(state: &StateResponse) -> Result<Status> {
    match state.status.enum_value_or_default() {
        TaskStatus::CREATED => Ok(Status::Created),
        TaskStatus::RUNNING => Ok(Status::Running),
        TaskStatus::PAUSING => Ok(Status::Pausing),
        TaskStatus::PAUSED => Ok(Status::Paused),
        TaskStatus::STOPPED => Ok(Status::Stopped),
        TaskStatus::UNKNOWN => Err(Error::new(Kind::Internal, format!("the shim knows no state of {}", state.id))),
    }
}

/// The reverse of what the service makes of an error.
fn error(error: ttrpc::Error) -> Error {
    let ttrpc::Error::RpcStatus(status) = error else {
        return Error::new(Kind::Unavailable, format!("the shim does not answer: {error}"));
    };
    let kind = match status.code() {
        Code::INVALID_ARGUMENT => Kind::InvalidArgument,
        Code::NOT_FOUND => Kind::NotFound,
        Code::ALREADY_EXISTS => Kind::AlreadyExists,
        Code::FAILED_PRECONDITION => Kind::FailedPrecondition,
        Code::UNIMPLEMENTED => Kind::Unimplemented,
        Code::DEADLINE_EXCEEDED => Kind::DeadlineExceeded,
        Code::UNAVAILABLE => Kind::Unavailable,
        _ => Kind::Internal,
    };
    Error::new(kind, status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_back_as_it_was() {
        for kind in [Kind::InvalidArgument, Kind::NotFound, Kind::AlreadyExists, Kind::FailedPrecondition] {
            let sent = Error::new(kind, "container a: not so");
            let got = error(super::super::service::status(sent));
            assert_eq!((got.kind(), got.to_string().as_str()), (kind, "container a: not so"));
        }
        for kind in [Kind::Unimplemented, Kind::DeadlineExceeded, Kind::Unavailable, Kind::Internal] {
            assert_eq!(error(super::super::service::status(Error::new(kind, "x"))).kind(), kind);
        }
        assert_eq!(error(ttrpc::Error::LocalClosed).kind(), Kind::Unavailable);
    }
}
