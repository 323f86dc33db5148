//! Sends the engine's events to containerd, in the order in which they happened.
//!
//! One event is on its way at a time. containerd may be away for minutes (a restart, an upgrade): the event at the head
//! is tried again until it is taken, and those behind it wait. What waits is bounded by bytes; at the bound the oldest
//! go, but never an exit or a delete: kubelet and Docker do not ask for those again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use containerd_shim_protos::types::mount::Mount;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use ttrpc::r#async::transport::Socket;
use ttrpc::proto::Code;

use crate::engine::events::{Event, Exit, RootfsMount};

/// The bounds of the publisher.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// One try, the connect included.
    attempt: Duration,
    /// First and last pause between two tries.
    pause: (Duration, Duration),
    /// Encoded size of what waits.
    bytes: usize,
}

const BOUNDS: Bounds = Bounds {
    attempt: Duration::from_secs(5),
    pause: (Duration::from_millis(100), Duration::from_secs(1)),
    bytes: 4 << 20,
};

/// What an event costs beyond its encoding: the allocations that hold it.
const OVERHEAD: usize = 256;

/// The queue's entrance. Clones share one queue.
#[derive(Clone)]
pub struct Publisher(Rc<Queue>);

struct Queue {
    namespace: String,
    /// Whether there is anyone to send to.
    connected: bool,
    bounds: Bounds,
    waiting: RefCell<VecDeque<Queued>>,
    bytes: Cell<usize>,
    /// An event has left `waiting` and is not yet taken.
    in_flight: Cell<bool>,
    arrived: Notify,
    emptied: Notify,
}

struct Queued {
    request: ForwardRequest,
    size: usize,
    /// An exit or a delete.
    precious: bool,
}

impl Publisher {
    /// A publisher to containerd's ttrpc socket at `address` (TTRPC_ADDRESS: a path, or `unix://` and a path), and the task
    /// that does its sending, to be spawned on the loop; it never ends. Without an address events are dropped.
    pub fn new(address: Option<String>, namespace: &str) -> (Self, impl Future<Output = ()> + use<>) {
        Self::with_bounds(address, namespace, BOUNDS)
    }

    fn with_bounds(
        address: Option<String>,
        namespace: &str,
        bounds: Bounds,
    ) -> (Self, impl Future<Output = ()> + use<>) {
        if address.is_none() {
            log::warn!("TTRPC_ADDRESS is not set: no events will be published");
        }
        let queue = Rc::new(Queue {
            namespace: namespace.to_owned(),
            connected: address.is_some(),
            bounds,
            waiting: RefCell::default(),
            bytes: Cell::new(0),
            in_flight: Cell::new(false),
            arrived: Notify::new(),
            emptied: Notify::new(),
        });
        let sender = Sender { queue: queue.clone(), address: address.unwrap_or_default(), client: None };
        (Self(queue), sender.run())
    }

    /// Queues `event`, as of now. Never waits.
    pub fn publish(&self, event: Event) {
        if self.0.connected {
            self.0.push(encode(event, &self.0.namespace, SystemTime::now()));
        }
    }

    /// Waits, at most for `bound`, until containerd has everything. Returns whether it has.
    pub async fn flush(&self, bound: Duration) -> bool {
        let all = async {
            while !self.0.is_empty() {
                self.0.emptied.notified().await;
            }
        };
        tokio::time::timeout(bound, all).await.is_ok()
    }
}

impl Queue {
    fn push(&self, event: Queued) {
        let mut waiting = self.waiting.borrow_mut();
        self.bytes.set(self.bytes.get() + event.size);
        waiting.push_back(event);
        while self.bytes.get() > self.bounds.bytes {
            let Some(dropped) = waiting.iter().position(|e| !e.precious).and_then(|i| waiting.remove(i)) else { break };
            self.bytes.set(self.bytes.get() - dropped.size);
            log::warn!("event {} dropped: too many wait for containerd", dropped.request.envelope.topic);
        }
        self.arrived.notify_one();
    }

    /// The oldest event, which is then in flight.
    async fn pop(&self) -> Queued {
        loop {
            if let Some(event) = self.waiting.borrow_mut().pop_front() {
                self.bytes.set(self.bytes.get() - event.size);
                self.in_flight.set(true);
                return event;
            }
            self.arrived.notified().await;
        }
    }

    /// The event in flight is settled.
    fn settle(&self) {
        self.in_flight.set(false);
        if self.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    fn is_empty(&self) -> bool {
        !self.in_flight.get() && self.waiting.borrow().is_empty()
    }
}

/// The queue's exit.
struct Sender {
    queue: Rc<Queue>,
    address: String,
    client: Option<EventsClient>,
}

impl Sender {
    async fn run(mut self) {
        loop {
            let event = self.queue.pop().await;
            self.deliver(&event.request).await;
            self.queue.settle();
        }
    }

    /// Tries until containerd has taken `request` or has refused it.
    async fn deliver(&mut self, request: &ForwardRequest) {
        let mut pause = self.queue.bounds.pause.0;
        let topic = &request.envelope.topic;
        loop {
            let bound = self.queue.bounds.attempt;
            let error = match tokio::time::timeout(bound, self.attempt(request)).await {
                Ok(Ok(())) => return,
                Ok(Err(e)) if !is_transient(&e) => return log::warn!("event {topic} refused by containerd: {e}"),
                Ok(Err(e)) => e.to_string(),
                Err(_) => format!("no answer in {bound:?}"),
            };
            // At debug level: the log goes to the same containerd, and its absence is not our fault.
            log::debug!("event {topic} will be sent again: {error}");
            self.client = None;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.queue.bounds.pause.1);
        }
    }

    /// One try, over the connection of the last one if that was well.
    async fn attempt(&mut self, request: &ForwardRequest) -> ttrpc::Result<()> {
        if self.client.is_none() {
            let path = self.address.strip_prefix("unix://").unwrap_or(&self.address);
            // tokio's, for its connect does not block when the listener's backlog is full; ttrpc's own does.
            let stream = UnixStream::connect(path).await.map_err(|e| ttrpc::Error::Socket(format!("{path}: {e}")))?;
            self.client = Some(EventsClient::new(Client::new(Socket::from(stream))));
        }
        let client = self.client.as_ref().ok_or(ttrpc::Error::LocalClosed)?;
        let mut context = ttrpc::context::with_duration(self.queue.bounds.attempt);
        context.set("containerd-namespace-ttrpc".to_owned(), vec![self.queue.namespace.clone()]);
        client.forward(context, request).await.map(drop)
    }
}

/// Whether the next try may fare better: everything but an answer from containerd that says otherwise.
fn is_transient(error: &ttrpc::Error) -> bool {
    match error {
        ttrpc::Error::RpcStatus(status) => matches!(status.code(), Code::UNAVAILABLE | Code::DEADLINE_EXCEEDED),
        _ => true,
    }
}

fn encode(event: Event, namespace: &str, at: SystemTime) -> Queued {
    let precious = matches!(event, Event::Exit { .. } | Event::Delete { .. });
    let (topic, any) = message(event);
    let mut envelope = Envelope::new();
    envelope.timestamp = MessageField::some(at.into());
    envelope.namespace = namespace.to_owned();
    envelope.topic = topic.to_owned();
    envelope.event = MessageField::some(any);
    let mut request = ForwardRequest::new();
    request.envelope = MessageField::some(envelope);
    let size = OVERHEAD + usize::try_from(request.compute_size()).unwrap_or(usize::MAX / 2);
    Queued { request, size, precious }
}

/// The event's topic and its message (containerd: api/events/task.proto).
fn message(event: Event) -> (&'static str, Any) {
    match event {
        Event::Create { id, bundle, rootfs, stdio, pid } => {
            let mut io = task::TaskIO::new();
            (io.stdin, io.stdout, io.stderr, io.terminal) = (stdio.stdin, stdio.stdout, stdio.stderr, stdio.terminal);
            let mut m = task::TaskCreate::new();
            (m.container_id, m.bundle, m.pid) = (id, bundle, pid);
            m.rootfs = rootfs.into_iter().map(mount).collect();
            m.io = MessageField::some(io);
            (topics::TASK_CREATE_EVENT_TOPIC, any("containerd.events.TaskCreate", &m))
        }
        Event::Start { id, pid } => {
            let mut m = task::TaskStart::new();
            (m.container_id, m.pid) = (id, pid);
            (topics::TASK_START_EVENT_TOPIC, any("containerd.events.TaskStart", &m))
        }
        Event::Exit { container, id, pid, exit: Exit { status, at } } => {
            let mut m = task::TaskExit::new();
            (m.container_id, m.id, m.pid, m.exit_status) = (container, id, pid, status);
            m.exited_at = MessageField::some(at.into());
            (topics::TASK_EXIT_EVENT_TOPIC, any("containerd.events.TaskExit", &m))
        }
        Event::Delete { id, pid, exit: Exit { status, at } } => {
            let mut m = task::TaskDelete::new();
            (m.container_id, m.pid, m.exit_status) = (id, pid, status);
            m.exited_at = MessageField::some(at.into());
            (topics::TASK_DELETE_EVENT_TOPIC, any("containerd.events.TaskDelete", &m))
        }
        Event::Paused { id } => {
            let mut m = task::TaskPaused::new();
            m.container_id = id;
            (topics::TASK_PAUSED_EVENT_TOPIC, any("containerd.events.TaskPaused", &m))
        }
        Event::Resumed { id } => {
            let mut m = task::TaskResumed::new();
            m.container_id = id;
            (topics::TASK_RESUMED_EVENT_TOPIC, any("containerd.events.TaskResumed", &m))
        }
        Event::Checkpointed { id, path } => {
            let mut m = task::TaskCheckpointed::new();
            m.container_id = id;
            m.checkpoint = path;
            (topics::TASK_CHECKPOINTED_EVENT_TOPIC, any("containerd.events.TaskCheckpointed", &m))
        }
        Event::Oom { container } => {
            let mut m = task::TaskOOM::new();
            m.container_id = container;
            (topics::TASK_OOM_EVENT_TOPIC, any("containerd.events.TaskOOM", &m))
        }
        Event::ExecAdded { container, exec } => {
            let mut m = task::TaskExecAdded::new();
            (m.container_id, m.exec_id) = (container, exec);
            (topics::TASK_EXEC_ADDED_EVENT_TOPIC, any("containerd.events.TaskExecAdded", &m))
        }
        Event::ExecStarted { container, exec, pid } => {
            let mut m = task::TaskExecStarted::new();
            (m.container_id, m.exec_id, m.pid) = (container, exec, pid);
            (topics::TASK_EXEC_STARTED_EVENT_TOPIC, any("containerd.events.TaskExecStarted", &m))
        }
    }
}

fn mount(from: RootfsMount) -> Mount {
    let mut to = Mount::new();
    (to.type_, to.source, to.target, to.options) = (from.kind, from.source, from.target, from.options);
    to
}

/// `message` under its bare name, which is how containerd's typeurl registers it: without protobuf's usual host. The name is
/// given because reflection would decode and keep the descriptors of all of containerd's types.
fn any(name: &str, message: &impl Message) -> Any {
    let mut any = Any::new();
    any.type_url = name.to_owned();
    // proto3 has no required fields, the only thing that can be missing.
    any.value = message.write_to_bytes().unwrap_or_default();
    any
}

#[cfg(test)]
mod tests;
