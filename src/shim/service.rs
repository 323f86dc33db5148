//! The task service: decode a request, hand it to the engine, encode the answer.
//!
//! A handler runs on the connection's task, which the ttrpc crate drops at a deadline and at the end of the connection.
//! Nothing is done there: the request goes to the engine's own task, which finishes what it has begun.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::types::mount::Mount;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::sync::{mpsc, oneshot};
use ttrpc::Code;
use ttrpc::r#async::{Server, Service, TtrpcContext};

use crate::engine::Engine;
use crate::engine::create::{Request, absolute_bundle};
use crate::engine::events::{RootfsMount, StdioUris};
use crate::engine::lifecycle::{FreezerState, State};
use crate::error::{Error, Kind, Os, Result};

use super::daemon::{BINARY, End};
use super::metrics;
use super::{VERSION, checkpoint, options, trace};

/// The service's names: messages and methods are the same in both (containerd 1.6 and 1.7 ask for v2, 2.0 and later for v3).
const NAMES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// Services that containerd probes for. The ttrpc crate answers INVALID_ARGUMENT for a service that it does not know,
/// where Go's says Unimplemented, by which containerd decides what to do without it; with an entry it says so too.
const NOT_OFFERED: [&str; 2] =
    ["containerd.runtime.sandbox.v1.Sandbox", "containerd.services.streaming.v1.TTRPCStreaming"];

/// Something for the engine's task to do.
type Job = Box<dyn FnOnce(Rc<Engine>) -> LocalBoxFuture<'static, ()> + Send>;

/// The handlers. They may be called from any connection's task, so they hold but a channel to the engine.
pub struct Task {
    jobs: mpsc::UnboundedSender<Job>,
    end: Arc<End>,
}

impl Task {
    /// The handlers, and what they ask for, to be [`run`]. `end` is what Shutdown brings about.
    pub fn new(end: Arc<End>) -> (Self, mpsc::UnboundedReceiver<Job>) {
        let (jobs, requests) = mpsc::unbounded_channel();
        (Self { jobs, end }, requests)
    }

    /// Has the engine do something, in a task of its own.
    pub(super) async fn engine<T, F, R>(&self, work: F) -> ttrpc::Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Engine>) -> R + Send + 'static,
        R: Future<Output = Result<T>> + 'static,
    {
        let (done, answer) = oneshot::channel();
        let job: Job = Box::new(move |engine| {
            Box::pin(async move {
                let panicked = |_| Err(Error::panicked());
                // What `work` does before it gives its future is guarded as well.
                let work = AssertUnwindSafe(async move { work(engine).await });
                let result = work.catch_unwind().await.unwrap_or_else(panicked);
                // Nobody may be waiting any more: the work is done all the same.
                let _ = done.send(result);
            })
        });
        let ended = || Error::new(Kind::Unavailable, "the shim is shutting down");
        self.jobs.send(job).map_err(|_| status(ended()))?;
        answer.await.unwrap_or_else(|_| Err(ended())).map_err(status)
    }
}

/// Does what the handlers ask for, each request beside the others.
pub async fn run(mut requests: mpsc::UnboundedReceiver<Job>, engine: Rc<Engine>) {
    while let Some(job) = requests.recv().await {
        tokio::task::spawn_local(job(engine.clone()));
    }
}

/// Registers the task service under both its names, our own, and the names of what is not offered.
pub fn register(server: Server, task: Task) -> Server {
    let task = Arc::new(task);
    let mut services: HashMap<String, Service> = HashMap::from([trace::service(task.clone())]);
    let task: Arc<dyn containerd_shim_protos::shim_async::Task + Send + Sync> = task;
    for name in NAMES {
        services.extend(create_task(task.clone()).into_values().map(|service| (name.to_owned(), service)));
    }
    let none = || Service { methods: HashMap::new(), streams: HashMap::new() };
    services.extend(NOT_OFFERED.map(|name| (name.to_owned(), none())));
    server.register_service(services)
}

/// The gRPC status that containerd and its clients interpret.
pub(super) fn status(error: Error) -> ttrpc::Error {
    let code = match error.kind() {
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::Unimplemented => Code::UNIMPLEMENTED,
        Kind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        Kind::Unavailable => Code::UNAVAILABLE,
        Kind::Internal => Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.to_string()))
}

#[async_trait]
impl containerd_shim_protos::shim_async::Task for Task {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let options = options::decode(request.options.as_ref()).map_err(status)?;
        let request = Request {
            bundle: absolute_bundle(&request.bundle).map_err(status)?,
            rootfs: request.rootfs.into_iter().map(rootfs_mount).collect(),
            stdio: StdioUris {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            options: options.container,
            restore: checkpoint::restore(request.checkpoint, options.criu_work),
            id: request.id,
            command: None,
        };
        name_binary(&request.bundle).map_err(status)?;
        let pid = self.engine(move |engine| engine.create(request)).await?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let pid = self.engine(move |engine| engine.start(request.id, request.exec_id)).await?;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        self.engine(move |engine| async move { state(&engine, &request) }).await
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (id, exec) = (request.id.clone(), request.exec_id.clone());
        let mut exits = self.engine(move |engine| async move { Ok(engine.process(&id, &exec)?.exits()) }).await?;
        // Here and not in the engine's task: a client that gives up is forgotten, where the container may run for months.
        let exit = exits.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        let gone = || Error::new(Kind::NotFound, format!("container {}: it was deleted meanwhile", request.id));
        let exit = exit.ok_or_else(gone).map_err(status)?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(exit.at.into()),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        // `all` asks for nothing more: SIGKILL reaches all of a container as it is, and other signals are init's to
        // hand on, as they are with runc.
        self.engine(move |engine| async move { engine.kill(&request.id, &request.exec_id, request.signal) }).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let uris = StdioUris {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = request.spec.into_option().map(|any| any.value).unwrap_or_default();
        self.engine(move |engine| async move { engine.exec(&request.id, &request.exec_id, &spec, uris) }).await?;
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let deleted = self.engine(move |engine| engine.delete(request.id, request.exec_id)).await?;
        Ok(DeleteResponse {
            pid: deleted.pid,
            exit_status: deleted.exit.status,
            exited_at: MessageField::some(deleted.exit.at.into()),
            ..Default::default()
        })
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        self.engine(move |engine| async move {
            let process = engine.process(&request.id, &request.exec_id)?;
            if let (true, Some(stdio)) = (request.stdin, &*process.stdio.borrow()) {
                stdio.close_stdin();
            }
            Ok(Empty::new())
        })
        .await
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        self.engine(move |engine| async move {
            engine.resize(&request.id, &request.exec_id, request.width, request.height)
        })
        .await?;
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let pids = self.engine(move |engine| async move { engine.pids(&request.id) }).await?;
        let mut response = PidsResponse::new();
        for (pid, exec_id) in pids {
            let info = exec_id.map(process_details).transpose()?;
            response.processes.push(ProcessInfo { pid, info: info.into(), ..Default::default() });
        }
        Ok(response)
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        // containerd asks with the id of the shim, whose container may not be there (yet): that is no error.
        let task_pid = self
            .engine(move |engine| async move { Ok(engine.process(&request.id, "").map_or(0, |init| init.pid())) })
            .await?;
        let version = VERSION.to_owned();
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, version, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        let end = self.end.clone();
        self.engine(move |engine| async move {
            end.unless_used(&engine);
            Ok(Empty::new())
        })
        .await
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        self.engine(move |engine| engine.pause(request.id)).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        self.engine(move |engine| async move { engine.resume(&request.id) }).await?;
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        // Its annotations are for nobody here, as with containerd's own shim.
        let resources = request.resources.into_option();
        self.engine(move |engine| async move { update(&engine, &request.id, resources).await }).await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let stats = self.engine(move |engine| async move { engine.stats(&request.id) }).await?;
        let stats = MessageField::some(metrics::message(stats)?);
        Ok(StatsResponse { stats, ..Default::default() })
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let request = checkpoint::request(request).map_err(status)?;
        self.engine(move |engine| engine.checkpoint(request)).await?;
        Ok(Empty::new())
    }
}

/// Tells a containerd that has been restarted which binary to call for the removal of this container. It writes that down
/// itself where it has executed `start`, but not for a container that it has given to the shim of its pod, and would
/// then go by the runtime's name (containerd: core/runtime/v2/shim_load.go).
fn name_binary(bundle: &Path) -> Result<()> {
    // In every such bundle is the id of the pod's shim.
    let (false, Some(binary)) = (std::fs::metadata(bundle.join("sandbox")).is_err(), std::env::var_os(BINARY)) else {
        return Ok(());
    };
    let path = bundle.join("shim-binary-path");
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        file => file.and_then(|mut file| file.write_all(binary.as_bytes())).os(|| format!("write {}", path.display())),
    }
}

/// By what `ctr task ps` and the CRI plugin tell an exec's process from the container's.
fn process_details(exec_id: String) -> ttrpc::Result<Any> {
    let details = ProcessDetails { exec_id, ..Default::default() };
    any("containerd.runc.v1.ProcessDetails", &details)
}

/// `message` under its bare name, as containerd's typeurl has it.
pub(super) fn any(name: &str, message: &impl Message) -> ttrpc::Result<Any> {
    let value = message.write_to_bytes().map_err(|e| status(Error::new(Kind::Internal, e.to_string())))?;
    Ok(Any { type_url: name.to_owned(), value, ..Default::default() })
}

async fn update(engine: &Engine, id: &str, resources: Option<Any>) -> Result<()> {
    let Some(resources) = resources else { return engine.container(id).map(drop) };
    // types.containerd.io/opencontainers/runtime-spec/1/LinuxResources
    if resources.type_url.rsplit('/').next() != Some("LinuxResources") {
        let text = format!("container {id}: update: resources of type {:?}, not LinuxResources", resources.type_url);
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    engine.update(id, &resources.value).await
}

fn state(engine: &Engine, request: &StateRequest) -> Result<StateResponse> {
    let container = engine.container(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let status = match process.state() {
        State::Creating | State::Created | State::Starting => Status::CREATED,
        State::Running => match container.freezer.get() {
            FreezerState::Thawed => Status::RUNNING,
            FreezerState::Freezing => Status::PAUSING,
            FreezerState::Frozen => Status::PAUSED,
        },
        State::Stopped => Status::STOPPED,
    };
    let exit = process.exit();
    Ok(StateResponse {
        id: request.id.clone(),
        exec_id: request.exec_id.clone(),
        bundle: container.bundle.to_string_lossy().into_owned(),
        pid: process.pid(),
        status: status.into(),
        stdin: process.uris.stdin.clone(),
        stdout: process.uris.stdout.clone(),
        stderr: process.uris.stderr.clone(),
        terminal: process.uris.terminal,
        exit_status: exit.map(|exit| exit.status).unwrap_or_default(),
        exited_at: exit.map(|exit| exit.at.into()).into(),
        ..Default::default()
    })
}

fn rootfs_mount(mount: Mount) -> RootfsMount {
    RootfsMount { kind: mount.type_, source: mount.source, target: mount.target, options: mount.options }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::address::Address;

    /// Asks, and sees that the next one is answered.
    fn ask(work: impl FnOnce(Rc<Engine>) -> LocalBoxFuture<'static, Result<()>> + Send + 'static) -> ttrpc::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let engine = Engine::new("test", "/nowhere".into(), Box::new(|_| ())).unwrap();
            let (task, requests) = Task::new(Arc::new(End::new(Address::at("/nowhere"))));
            tokio::task::spawn_local(run(requests, engine));
            let answer = task.engine(work).await;
            let next = task.engine(|engine| async move { Ok(engine.is_empty()) }).await;
            assert!(next.unwrap(), "the next request is served");
            answer
        })
    }

    #[test]
    fn a_panic_is_the_internal_error_of_its_request_alone() {
        let early = ask(|_| panic!("before the future"));
        let late = ask(|_| Box::pin(async { panic!("in the future") }));
        for answer in [early, late] {
            let ttrpc::Error::RpcStatus(status) = answer.unwrap_err() else { panic!("not a status") };
            assert_eq!(status.code(), Code::INTERNAL, "{status:?}");
        }
    }
}
