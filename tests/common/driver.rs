//! A shim driven as containerd 1.6 drives it: the actions `start` and `delete`, and the task service over ttrpc.

use std::fs;
use std::io::{self, Read};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use containerd_shim_protos::protobuf::well_known_types::{any::Any, empty::Empty};
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message, MessageField};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use containerd_shim_protos::{api, bootstrap_api};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use ttrpc::asynchronous::Client;

use super::bundle::Bundle;
use super::events::EventSink;
use super::patience;
use super::scratch::Scratch;
use super::stdio::Io;

/// The task service's name in containerd 1.6 and 1.7.
pub const TASK_V2: &str = "containerd.task.v2.Task";
/// Its name since containerd 2.0; the messages are the same.
pub const TASK_V3: &str = "containerd.task.v3.Task";

/// How long a call may take unless the test says otherwise (`Task::within`).
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an action of the binary may take.
const ACTION_TIMEOUT: Duration = Duration::from_secs(20);

/// What a start may vary from containerd 1.6 with `ctr run`.
#[derive(Clone, Default)]
pub struct StartOptions {
    /// Runtime options: stdin of `start`, and in every Create. runc.v1.Options for the Go shim.
    pub options: Option<Any>,
    /// What stdin of `start` holds instead, bytes as they are.
    pub stdin: Option<Vec<u8>>,
    /// -debug
    pub debug: bool,
    /// Further flags.
    pub flags: Vec<String>,
    /// Environment beside that of 1.6, such as MAX_SHIM_VERSION.
    pub env: Vec<(&'static str, String)>,
    /// The task service to call; by default what the reply's version says, v2 for a plain address.
    pub service: Option<&'static str>,
}

/// What an action of the binary left.
#[derive(Debug)]
pub struct ActionOutput {
    /// Its exit status.
    pub status: ExitStatus,
    /// stdout; for `start` with stderr in it, as containerd reads it.
    pub stdout: Vec<u8>,
    /// stderr, apart from stdout for `delete` only.
    pub stderr: Vec<u8>,
}

/// A started shim. Its drop leaves nothing of it: shim, containers, mounts, socket.
pub struct Shim {
    /// The task service; its calls are those of the shim.
    pub task: Task,
    /// The address of the reply, with its unix://.
    pub address: String,
    binary: PathBuf,
    scratch: Scratch,
    sink_address: PathBuf,
    first: (String, PathBuf),
}

impl Shim {
    /// `start` with the defaults of `ctr run`, and a connection to the address of the reply.
    pub async fn start(binary: &Path, bundle: &Bundle, sink: &EventSink) -> Result<Shim, String> {
        Shim::start_with(binary, bundle, sink, StartOptions::default()).await
    }

    /// The same with other options.
    pub async fn start_with(
        binary: &Path,
        bundle: &Bundle,
        sink: &EventSink,
        options: StartOptions,
    ) -> Result<Shim, String> {
        let output = start_action(binary, bundle, sink, &options).map_err(|e| format!("start: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
        if !output.status.success() {
            return Err(format!("start: {}: {text}", output.status));
        }
        let (address, version) = parse_reply(&output.stdout)?;
        let client = Client::connect(&address).await.map_err(|e| format!("{address}: {e}"))?;
        let service = options.service.unwrap_or(if version < 3 { TASK_V2 } else { TASK_V3 });
        let task = Task {
            client,
            service: service.to_string(),
            namespace: bundle.scratch().namespace().to_string(),
            timeout: CALL_TIMEOUT,
            options: options.options,
            made: Arc::default(),
        };
        Ok(Shim {
            task,
            address,
            binary: binary.to_path_buf(),
            scratch: bundle.scratch().clone(),
            sink_address: sink.address().to_path_buf(),
            first: (bundle.id.clone(), bundle.dir().to_path_buf()),
        })
    }

    /// Another connection, as a restarted containerd makes it.
    pub async fn reconnect(&self) -> Result<Task, String> {
        let client = Client::connect(&self.address).await.map_err(|e| format!("{}: {e}", self.address))?;
        Ok(Task { client, ..self.task.clone() })
    }

    /// The shim's pid, as it says itself.
    pub async fn pid(&self) -> ttrpc::Result<i32> {
        Ok(self.task.connect(&self.first.0).await?.shim_pid as i32)
    }

    /// kill -9, and waits until it is gone.
    pub async fn kill_shim(&self) -> Result<(), String> {
        let pid = self.pid().await.map_err(|e| e.to_string())?;
        let pidfd = open_pid(pid).ok_or("the shim is gone already")?;
        pidfd_send_signal(&pidfd, Signal::KILL).map_err(|e| e.to_string())?;
        await_exit(&pidfd, Duration::from_secs(10)).map_err(|e| format!("shim {pid}: {e}"))
    }

    /// Shutdown, whose answer may be lost with the connection, and the end of the process (unless it still has
    /// containers: then the error says that it lives).
    pub async fn shutdown_and_wait(self, timeout: Duration) -> Result<(), String> {
        let pid = self.pid().await.map_err(|e| e.to_string())?;
        let pidfd = open_pid(pid).ok_or("the shim is gone already")?;
        let _ = self.task.within(timeout).shutdown(&self.first.0, false).await;
        await_exit(&pidfd, timeout).map_err(|e| format!("shim {pid}: {e}"))
    }

    /// The `delete` action as containerd runs it after the shim's death, for the bundle of the first container.
    pub fn delete_action(&self) -> Result<api::DeleteResponse, String> {
        self.delete_action_for(&self.first.0, &self.first.1)
    }

    /// The same for another container of the shim.
    pub fn delete_action_for(&self, id: &str, bundle: &Path) -> Result<api::DeleteResponse, String> {
        let output = self.delete_output(id, bundle).map_err(|e| format!("delete: {e}"))?;
        if !output.status.success() {
            return Err(format!("delete: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
        }
        api::DeleteResponse::parse_from_bytes(&output.stdout).map_err(|e| format!("delete: {e}: {:?}", output.stdout))
    }

    fn delete_output(&self, id: &str, bundle: &Path) -> io::Result<ActionOutput> {
        let mut command = shim_command(&self.binary, &self.scratch, &self.sink_address, bundle);
        command.args(["-id", id, "-bundle"]).arg(bundle).arg("delete").stdin(Stdio::null());
        let ((stdout, out), (stderr, err)) = (io::pipe()?, io::pipe()?);
        command.stdout(out).stderr(err);
        run(command, [Some(stdout), Some(stderr)])
    }
}

impl Deref for Shim {
    type Target = Task;

    fn deref(&self) -> &Task {
        &self.task
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let made = std::mem::take(&mut *self.task.made.lock().unwrap());
        let dead = Duration::from_secs(5);
        let shims: Vec<_> = self.scratch.shims().into_iter().filter_map(open_pid).collect();
        for process in shims.iter().chain(&made.processes) {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        for shim in &shims {
            let _ = await_exit(shim, dead);
        }
        // After a proper end there is nothing to delete, and the tests must not depend on this action.
        for (id, bundle) in made.containers.iter().filter(|(_, bundle)| bundle.is_dir()) {
            if let Err(e) = self.delete_output(id, bundle) {
                eprintln!("cleaning up {id}: {e}");
            }
        }
        let socket = self.address.trim_start_matches("unix://");
        let _ = fs::remove_file(format!("{socket}.dray"));
        let _ = fs::remove_file(socket);
    }
}

/// Runs the `start` action alone, as containerd does: stdout and stderr in one, until both are closed.
pub fn start_action(
    binary: &Path,
    bundle: &Bundle,
    sink: &EventSink,
    options: &StartOptions,
) -> io::Result<ActionOutput> {
    let mut command = shim_command(binary, bundle.scratch(), sink.address(), bundle.dir());
    command.args(["-id", &bundle.id]).args(options.debug.then_some("-debug")).args(&options.flags).arg("start");
    command.envs(options.env.iter().map(|(name, value)| (name, value)));
    let any = options.options.as_ref().map(|any| any.write_to_bytes().expect("encode Any"));
    match options.stdin.clone().or(any) {
        None => drop(command.stdin(Stdio::null())),
        Some(bytes) => {
            let (reader, mut writer) = io::pipe()?;
            io::Write::write_all(&mut writer, &bytes)?; // Options fit into the pipe.
            command.stdin(reader);
        }
    }
    let (output, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    run(command, [Some(output), None])
}

/// The part of the command line that all actions share (containerd's runtime/v2/shim/util.go, Command).
fn shim_command(binary: &Path, scratch: &Scratch, sink_address: &Path, bundle: &Path) -> Command {
    let mut command = Command::new(binary);
    command.args(["-namespace", scratch.namespace(), "-address"]).arg(scratch.grpc_address());
    command.args(["-publish-binary", "/bin/true"]);
    command.current_dir(bundle).process_group(0);
    command.env("GOMAXPROCS", "2").env("TTRPC_ADDRESS", sink_address);
    command
}

/// Runs to the end of its output and its exit; what takes longer is killed.
fn run(mut command: Command, pipes: [Option<io::PipeReader>; 2]) -> io::Result<ActionOutput> {
    let mut child = command.spawn()?;
    drop(command); // The writing ends of the pipes.
    let deadline = Instant::now() + patience(ACTION_TIMEOUT);
    let collected = collect(pipes, deadline);
    let (status, [stdout, stderr]) = match (collected, wait_until(&mut child, deadline)) {
        (Ok(output), Ok(status)) => (status, output),
        (Err(e), _) | (_, Err(e)) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(e);
        }
    };
    Ok(ActionOutput { status, stdout, stderr })
}

fn collect(mut pipes: [Option<io::PipeReader>; 2], deadline: Instant) -> io::Result<[Vec<u8>; 2]> {
    let mut output = [Vec::new(), Vec::new()];
    let mut buffer = [0; 4096];
    for (pipe, bytes) in pipes.iter_mut().zip(&mut output) {
        while let Some(open) = pipe {
            if !readable(open, deadline)? {
                let text = String::from_utf8_lossy(bytes).into_owned();
                return Err(io::Error::other(format!("output was not closed within {ACTION_TIMEOUT:?}: {text}")));
            }
            match open.read(&mut buffer)? {
                0 => *pipe = None,
                n => bytes.extend_from_slice(&buffer[..n]),
            }
        }
    }
    Ok(output)
}

fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<ExitStatus> {
    let pidfd = open_pid(child.id() as i32).ok_or_else(|| io::Error::other("pidfd_open of a child"))?;
    if !readable(&pidfd, deadline)? {
        return Err(io::Error::other(format!("no exit within {ACTION_TIMEOUT:?}")));
    }
    child.wait()
}

/// Waits until a process is gone; it need not be a child.
pub fn await_exit(pidfd: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let exited = readable(pidfd, Instant::now() + patience(timeout))?;
    exited.then_some(()).ok_or_else(|| io::Error::other(format!("still there after {timeout:?}")))
}

fn readable(fd: &impl std::os::fd::AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// A pidfd, so that a reused pid is never signalled; None when the process is gone.
pub fn open_pid(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// The address and version of a `start` reply: plain as in 1.6, JSON, or protobuf, which begins with the number of its
/// first field.
pub fn parse_reply(reply: &[u8]) -> Result<(String, u64), String> {
    if reply.first() == Some(&8) {
        let result = bootstrap_api::BootstrapResult::parse_from_bytes(reply).map_err(|e| format!("start: {e}"))?;
        assert_eq!(result.protocol, "ttrpc");
        return Ok((result.address, result.version as u64));
    }
    let text = str::from_utf8(reply).map_err(|e| format!("start: {e}: {reply:?}"))?.trim();
    if !text.starts_with('{') {
        return match text.starts_with("unix://") && !text.contains(char::is_whitespace) {
            true => Ok((text.to_string(), 2)),
            false => Err(format!("start: not an address: {text:?}")),
        };
    }
    let reply: Value = serde_json::from_str(text).map_err(|e| format!("start: {e}: {text:?}"))?;
    match (reply["address"].as_str(), reply["version"].as_u64(), reply["protocol"].as_str()) {
        (Some(address), Some(version), Some("ttrpc")) => Ok((address.to_string(), version)),
        _ => Err(format!("start: reply {text:?}")),
    }
}

/// A connection to the task service. Clones share it.
#[derive(Clone)]
pub struct Task {
    client: Client,
    service: String,
    namespace: String,
    timeout: Duration,
    options: Option<Any>,
    made: Arc<Mutex<Made>>,
}

/// What drop has to undo.
#[derive(Default)]
struct Made {
    processes: Vec<OwnedFd>,
    containers: Vec<(String, PathBuf)>,
}

/// A Wait that is under way.
pub type Waiting = tokio::task::JoinHandle<ttrpc::Result<api::WaitResponse>>;

impl Task {
    /// The same connection with another time limit; it is sent along, as the deadline of containerd's context is.
    pub fn within(&self, timeout: Duration) -> Task {
        Task { timeout, ..self.clone() }
    }

    /// The same connection under another service name.
    pub fn service(&self, service: &str) -> Task {
        Task { service: service.to_string(), ..self.clone() }
    }

    /// Any call by its name.
    pub async fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> ttrpc::Result<A> {
        let encoded = request.write_to_bytes().map_err(|e| ttrpc::Error::Others(format!("encode {method}: {e}")))?;
        let answer = self.call_raw(method, encoded).await?;
        A::parse_from_bytes(&answer).map_err(|e| ttrpc::Error::Others(format!("decode {method}: {e}")))
    }

    /// A call whose payload need not be a message.
    pub async fn call_raw(&self, method: &str, payload: Vec<u8>) -> ttrpc::Result<Vec<u8>> {
        let namespace = [("containerd-namespace-ttrpc".to_string(), vec![self.namespace.clone()])];
        let request = ttrpc::Request {
            service: self.service.clone(),
            method: method.to_string(),
            payload,
            timeout_nano: patience(self.timeout).as_nanos() as i64,
            metadata: ttrpc::context::to_pb(namespace.into()),
            ..Default::default()
        };
        Ok(self.client.request(request).await?.payload)
    }

    /// Create with the bundle's rootfs mounts and this stdio.
    pub async fn create(&self, bundle: &Bundle, io: &Io) -> ttrpc::Result<api::CreateTaskResponse> {
        self.create_request(self.request_for(bundle, io)).await
    }

    /// The request that `create` sends, for a test to change.
    pub fn request_for(&self, bundle: &Bundle, io: &Io) -> api::CreateTaskRequest {
        api::CreateTaskRequest {
            id: bundle.id.clone(),
            bundle: bundle.dir().to_str().expect("UTF-8 path").to_string(),
            rootfs: bundle.rootfs.clone(),
            terminal: io.terminal,
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            options: MessageField(self.options.clone().map(Box::new)),
            ..Default::default()
        }
    }

    /// Create, as written by the test.
    pub async fn create_request(&self, request: api::CreateTaskRequest) -> ttrpc::Result<api::CreateTaskResponse> {
        // Before the answer: an aborted create has things to clean up as well.
        self.made.lock().unwrap().containers.push((request.id.clone(), PathBuf::from(&request.bundle)));
        let response: api::CreateTaskResponse = self.call("Create", &request).await?;
        self.born(response.pid);
        Ok(response)
    }

    /// Start of the container (exec_id "") or of an exec.
    pub async fn start(&self, id: &str, exec_id: &str) -> ttrpc::Result<api::StartResponse> {
        let request = api::StartRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        let response: api::StartResponse = self.call("Start", &request).await?;
        self.born(response.pid);
        Ok(response)
    }

    /// Wait until the process has exited.
    pub async fn wait(&self, id: &str, exec_id: &str) -> ttrpc::Result<api::WaitResponse> {
        let request = api::WaitRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.call("Wait", &request).await
    }

    /// Wait as containerd's clients use it: its request is sent now, before Start, and its answer awaited later.
    pub async fn spawn_wait(&self, id: &str, exec_id: &str) -> Waiting {
        let (task, id, exec_id) = (self.clone(), id.to_string(), exec_id.to_string());
        let mut wait: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move { task.wait(&id, &exec_id).await });
        let sent = std::future::poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx))).await;
        match sent {
            Poll::Ready(answer) => tokio::spawn(std::future::ready(answer)),
            Poll::Pending => tokio::spawn(wait),
        }
    }

    pub async fn state(&self, id: &str, exec_id: &str) -> ttrpc::Result<api::StateResponse> {
        let request = api::StateRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.call("State", &request).await
    }

    /// The status alone, of the container or of an exec.
    pub async fn status(&self, id: &str, exec_id: &str) -> ttrpc::Result<api::Status> {
        let status: EnumOrUnknown<api::Status> = self.state(id, exec_id).await?.status;
        Ok(status.enum_value_or_default())
    }

    pub async fn kill(&self, id: &str, exec_id: &str, signal: i32, all: bool) -> ttrpc::Result<()> {
        let (id, exec_id, signal) = (id.into(), exec_id.into(), signal as u32);
        let request = api::KillRequest { id, exec_id, signal, all, ..Default::default() };
        self.empty("Kill", &request).await
    }

    pub async fn delete(&self, id: &str, exec_id: &str) -> ttrpc::Result<api::DeleteResponse> {
        let request = api::DeleteRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        let response = self.call("Delete", &request).await?;
        if exec_id.is_empty() {
            self.made.lock().unwrap().containers.retain(|(made, _)| made != id);
        }
        Ok(response)
    }

    /// Exec with a process of config.json's form (`Bundle::process`).
    pub async fn exec(&self, id: &str, exec_id: &str, process: &Value, io: &Io) -> ttrpc::Result<()> {
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_string(),
            value: process.to_string().into_bytes(),
            ..Default::default()
        };
        let request = api::ExecProcessRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            terminal: io.terminal,
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            spec: MessageField::some(spec),
            ..Default::default()
        };
        self.empty("Exec", &request).await
    }

    /// Exec, Start, Wait and Delete: what `ctr task exec` and a probe do.
    pub async fn exec_to_exit(
        &self,
        id: &str,
        exec_id: &str,
        process: &Value,
        io: &Io,
    ) -> ttrpc::Result<api::WaitResponse> {
        self.exec(id, exec_id, process, io).await?;
        let waiting = self.spawn_wait(id, exec_id).await;
        self.start(id, exec_id).await?;
        let exit = waiting.await.map_err(|e| ttrpc::Error::Others(e.to_string()))??;
        self.delete(id, exec_id).await?;
        Ok(exit)
    }

    pub async fn pids(&self, id: &str) -> ttrpc::Result<Vec<u32>> {
        let request = api::PidsRequest { id: id.into(), ..Default::default() };
        let response: api::PidsResponse = self.call("Pids", &request).await?;
        Ok(response.processes.iter().map(|process| process.pid).collect())
    }

    pub async fn pause(&self, id: &str) -> ttrpc::Result<()> {
        self.empty("Pause", &api::PauseRequest { id: id.into(), ..Default::default() }).await
    }

    /// Checkpoint into the directory `images`.
    pub async fn checkpoint_with(&self, id: &str, images: &Path, options: CheckpointOptions) -> ttrpc::Result<()> {
        let value = options.write_to_bytes().expect("encode options");
        let type_url = "containerd.runc.v1.CheckpointOptions".to_string();
        let options = MessageField::some(Any { type_url, value, ..Any::default() });
        let path = images.to_str().expect("UTF-8 path").to_string();
        self.empty("Checkpoint", &api::CheckpointTaskRequest { id: id.into(), path, options, ..Default::default() })
            .await
    }

    pub async fn resume(&self, id: &str) -> ttrpc::Result<()> {
        self.empty("Resume", &api::ResumeRequest { id: id.into(), ..Default::default() }).await
    }

    pub async fn checkpoint(&self, id: &str, path: &Path) -> ttrpc::Result<()> {
        let path = path.to_string_lossy().into_owned();
        self.empty("Checkpoint", &api::CheckpointTaskRequest { id: id.into(), path, ..Default::default() }).await
    }

    pub async fn resize_pty(&self, id: &str, exec_id: &str, width: u32, height: u32) -> ttrpc::Result<()> {
        let (id, exec_id) = (id.into(), exec_id.into());
        self.empty("ResizePty", &api::ResizePtyRequest { id, exec_id, width, height, ..Default::default() }).await
    }

    pub async fn close_io(&self, id: &str, exec_id: &str) -> ttrpc::Result<()> {
        let (id, exec_id) = (id.into(), exec_id.into());
        self.empty("CloseIO", &api::CloseIORequest { id, exec_id, stdin: true, ..Default::default() }).await
    }

    /// Update with linux.resources of config.json's form.
    pub async fn update(&self, id: &str, resources: &Value) -> ttrpc::Result<()> {
        let resources = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_string(),
            value: resources.to_string().into_bytes(),
            ..Default::default()
        };
        let resources = MessageField::some(resources);
        self.empty("Update", &api::UpdateTaskRequest { id: id.into(), resources, ..Default::default() }).await
    }

    pub async fn stats(&self, id: &str) -> ttrpc::Result<api::StatsResponse> {
        self.call("Stats", &api::StatsRequest { id: id.into(), ..Default::default() }).await
    }

    pub async fn connect(&self, id: &str) -> ttrpc::Result<api::ConnectResponse> {
        self.call("Connect", &api::ConnectRequest { id: id.into(), ..Default::default() }).await
    }

    pub async fn shutdown(&self, id: &str, now: bool) -> ttrpc::Result<()> {
        self.empty("Shutdown", &api::ShutdownRequest { id: id.into(), now, ..Default::default() }).await
    }

    async fn empty<Q: Message>(&self, method: &str, request: &Q) -> ttrpc::Result<()> {
        self.call::<Q, Empty>(method, request).await.map(drop)
    }

    /// A process to kill when the test fails; a pid that is gone already needs nothing.
    fn born(&self, pid: u32) {
        if pid <= 1 || pid == std::process::id() {
            return; // A faulty shim must not make us kill ourselves.
        }
        if let Some(pidfd) = open_pid(pid as i32) {
            let mut made = self.made.lock().unwrap();
            made.processes.retain(|old| !readable(old, Instant::now()).unwrap_or(true));
            made.processes.push(pidfd);
        }
    }
}

/// The gRPC code of a failed call, as containerd reads it; None for an error of the connection.
pub fn code(error: &ttrpc::Error) -> Option<ttrpc::Code> {
    match error {
        ttrpc::Error::RpcStatus(status) => Some(status.code()),
        _ => None,
    }
}

/// runc.v1.Options as the Go shim takes them; `binary_name` "" is runc.
pub fn runc_options(binary_name: &str) -> Any {
    let options =
        containerd_shim_protos::shim::oci::Options { binary_name: binary_name.to_string(), ..Default::default() };
    Any {
        type_url: "containerd.runc.v1.Options".to_string(),
        value: options.write_to_bytes().expect("encode Options"),
        ..Default::default()
    }
}
