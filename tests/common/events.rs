//! containerd's end of the events service: records what shims publish, and can be away as a restarting containerd is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::{Message, well_known_types::any::Any, well_known_types::empty::Empty};
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use tokio::sync::{oneshot, watch};
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::scratch::Scratch;

/// One event as it arrived. Fields that its kind does not have are empty or 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    pub topic: String,
    pub namespace: String,
    pub container_id: String,
    /// The exec id; "" for init (where containerd wants the container's id: see `raw_id`).
    pub exec_id: String,
    /// TaskExit.id as sent: the container's id for init's exit.
    pub raw_id: String,
    pub pid: u32,
    pub exit_status: u32,
    /// Set where the event's payload is not of the type that its topic promises, or is broken.
    pub fault: Option<String>,
}

/// How the sink treats the events that arrive.
#[derive(Clone, Debug, Default)]
pub enum Reply {
    /// Record and answer.
    #[default]
    Accept,
    /// Record nothing, fail with this code.
    Fail(ttrpc::Code),
    /// Record nothing, never answer: containerd hangs.
    Hang,
}

/// A ttrpc server of containerd.services.events.ttrpc.v1.Events, on a thread of its own so that a test may block.
pub struct EventSink {
    path: PathBuf,
    shared: Arc<Shared>,
    server: Option<Running>,
}

struct Shared {
    seen: watch::Sender<Vec<Event>>,
    reply: Mutex<Reply>,
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl EventSink {
    /// Listens where containerd of this scratch directory would.
    pub fn start(scratch: &Scratch) -> EventSink {
        let shared = Shared { seen: watch::Sender::new(Vec::new()), reply: Mutex::new(Reply::Accept) };
        let path = scratch.dir().join("containerd.sock.ttrpc");
        let mut sink = EventSink { path, shared: Arc::new(shared), server: None };
        sink.restart();
        sink
    }

    /// What goes to the shim as TTRPC_ADDRESS.
    pub fn address(&self) -> &Path {
        &self.path
    }

    /// containerd dies: connections close, the socket file stays and refuses.
    pub fn stop(&mut self) {
        if let Some(running) = self.server.take() {
            drop(running.stop);
            running.thread.join().expect("event sink thread");
        }
    }

    /// containerd is back, on the same path, with what it recorded before.
    pub fn restart(&mut self) {
        self.stop();
        let _ = fs::remove_file(&self.path);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (address, shared) = (format!("unix://{}", self.path.display()), self.shared.clone());
        let thread = std::thread::spawn(move || {
            // The runtime goes with this function, and all connections with it: no farewell, as after kill -9.
            super::block_on(async move {
                let mut server = Server::new().bind(&address).expect("bind event sink");
                server = server.register_service(create_events(Arc::new(Recorder(shared))));
                server.start().await.expect("start event sink");
                let _ = ready.send(());
                let _ = stopped.await;
            });
        });
        is_ready.recv().expect("event sink did not start");
        self.server = Some(Running { stop, thread });
    }

    /// Changes how later events are treated.
    pub fn reply(&self, reply: Reply) {
        *self.shared.reply.lock().unwrap() = reply;
    }

    /// Everything recorded, in order.
    pub fn events(&self) -> Vec<Event> {
        self.shared.seen.borrow().clone()
    }

    /// The topics of one container in order, without "/tasks/": what most tests compare.
    pub fn topics(&self, container_id: &str) -> Vec<String> {
        let seen = self.shared.seen.borrow();
        let of_container = seen.iter().filter(|event| event.container_id == container_id);
        of_container.map(|event| event.topic.trim_start_matches("/tasks/").to_string()).collect()
    }

    /// Topics of one exec, in order.
    pub fn topics_of_exec(&self, exec: &str) -> Vec<String> {
        let seen = self.shared.seen.borrow();
        let of_exec = seen.iter().filter(|event| event.exec_id == exec);
        of_exec.map(|event| event.topic.trim_start_matches("/tasks/").to_string()).collect()
    }

    /// Waits until the predicate holds for all events so far; the error lists what came instead.
    pub async fn wait_for(
        &self,
        mut predicate: impl FnMut(&[Event]) -> bool,
        timeout: Duration,
    ) -> Result<Vec<Event>, String> {
        let mut receiver = self.shared.seen.subscribe();
        let result =
            tokio::time::timeout(super::patience(timeout), receiver.wait_for(|events| predicate(events))).await;
        match result {
            Ok(Ok(events)) => Ok(events.clone()),
            _ => Err(format!("after {timeout:?} only: {:#?}", self.events())),
        }
    }

    /// Waits for one event by topic (without "/tasks/") and container.
    pub async fn wait_topic(&self, topic: &str, container_id: &str, timeout: Duration) -> Result<Event, String> {
        let wanted = |event: &&Event| event.topic == format!("/tasks/{topic}") && event.container_id == container_id;
        let events = self.wait_for(|events| events.iter().any(|event| wanted(&event)), timeout).await?;
        Ok(events.iter().find(wanted).expect("awaited").clone())
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Recorder(Arc<Shared>);

#[async_trait]
impl Events for Recorder {
    async fn forward(&self, _ctx: &TtrpcContext, mut request: ForwardRequest) -> ttrpc::Result<Empty> {
        let reply = self.0.reply.lock().unwrap().clone();
        match reply {
            Reply::Accept => {
                let mut envelope = request.take_envelope();
                let payload = envelope.event.take().unwrap_or_default();
                let event = decode(&envelope.topic, &payload);
                let event = Event { namespace: envelope.namespace, topic: envelope.topic, ..event };
                self.0.seen.send_modify(|events| events.push(event));
                Ok(Empty::new())
            }
            Reply::Fail(code) => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "told to fail".to_string()))),
            Reply::Hang => std::future::pending().await,
        }
    }
}

/// The ids and numbers of an event by its topic, as containerd's consumers read it.
fn decode(topic: &str, payload: &Any) -> Event {
    macro_rules! event {
        ($kind:ident { $($from:ident => $to:ident),* }) => {
            match events::$kind::parse_from_bytes(&payload.value) {
                _ if payload.type_url.rsplit(['/', '.']).next() != Some(stringify!($kind)) => {
                    Event { fault: Some(format!("{topic} carries {}", payload.type_url)), ..Event::default() }
                }
                Err(e) => Event { fault: Some(format!("{topic}: {e}")), ..Event::default() },
                Ok(e) => Event { container_id: e.container_id, $($to: e.$from,)* ..Event::default() },
            }
        };
    }
    let mut event = match topic {
        "/tasks/create" => event!(TaskCreate { pid => pid }),
        "/tasks/start" => event!(TaskStart { pid => pid }),
        "/tasks/exit" => event!(TaskExit { id => raw_id, pid => pid, exit_status => exit_status }),
        "/tasks/delete" => event!(TaskDelete { id => raw_id, pid => pid, exit_status => exit_status }),
        "/tasks/exec-added" => event!(TaskExecAdded { exec_id => raw_id }),
        "/tasks/exec-started" => event!(TaskExecStarted { exec_id => raw_id, pid => pid }),
        "/tasks/oom" => event!(TaskOOM {}),
        "/tasks/paused" => event!(TaskPaused {}),
        "/tasks/resumed" => event!(TaskResumed {}),
        "/tasks/checkpointed" => event!(TaskCheckpointed {}),
        _ => Event { fault: Some(format!("topic {topic}")), ..Event::default() },
    };
    if event.raw_id != event.container_id {
        event.exec_id = event.raw_id.clone();
    }
    event
}
