//! The publisher against a real ttrpc server in place of containerd.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::protobuf::MessageFull;
use containerd_shim_protos::shim_async::{Events, create_events};
use ttrpc::r#async::{Server, TtrpcContext};

use super::*;
use crate::engine::events::StdioUris;

const QUICK: Bounds = Bounds {
    attempt: Duration::from_millis(200),
    pause: (Duration::from_millis(5), Duration::from_millis(20)),
    bytes: 4 << 20,
};
const LONG: Duration = Duration::from_secs(10);

/// What containerd does with a request.
#[derive(Clone, Copy)]
enum Answer {
    Ok,
    Code(Code),
    Never,
}

/// A containerd that comes and goes, and remembers what it took.
#[derive(Clone, Default)]
struct Containerd(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    taken: Vec<(Envelope, HashMap<String, Vec<String>>)>,
    /// By topic, what the next requests get; then Ok.
    answers: HashMap<&'static str, Vec<Answer>>,
    tries: usize,
    at_once: usize,
    most_at_once: usize,
}

#[async_trait]
impl Events for Containerd {
    async fn forward(&self, context: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap();
        let answer = {
            let mut log = self.0.lock().unwrap();
            log.tries += 1;
            log.at_once += 1;
            log.most_at_once = log.most_at_once.max(log.at_once);
            log.answers.get_mut(envelope.topic.as_str()).and_then(Vec::pop).unwrap_or(Answer::Ok)
        };
        // Gives a second request, if there were one, the time to arrive.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        if let Answer::Never = answer {
            self.0.lock().unwrap().at_once -= 1;
            std::future::pending::<()>().await;
        }
        let mut log = self.0.lock().unwrap();
        log.at_once -= 1;
        match answer {
            Answer::Code(code) => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "as told"))),
            _ => {
                log.taken.push((envelope, context.metadata.clone()));
                Ok(Empty::new())
            }
        }
    }
}

impl Containerd {
    fn answer(self, topic: &'static str, answers: &[Answer]) -> Self {
        self.0.lock().unwrap().answers.insert(topic, answers.iter().rev().copied().collect());
        self
    }

    async fn serve(&self, socket: &Socketfile) -> Server {
        let _ = std::fs::remove_file(&socket.0);
        let address = format!("unix://{}", socket.0.display());
        let mut server = Server::new().bind(&address).unwrap().register_service(create_events(Arc::new(self.clone())));
        server.start().await.unwrap();
        server
    }

    fn pids(&self) -> Vec<u32> {
        let log = self.0.lock().unwrap();
        log.taken.iter().map(|(e, _)| task::TaskStart::parse_from_bytes(&e.event.value).unwrap().pid).collect()
    }

    fn topics(&self) -> Vec<String> {
        self.0.lock().unwrap().taken.iter().map(|(e, _)| e.topic.clone()).collect()
    }
}

struct Socketfile(PathBuf);

impl Socketfile {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("dray-events-{name}-{}", std::process::id())))
    }

    fn publisher(&self, bounds: Bounds) -> Publisher {
        let (publisher, sender) = Publisher::with_bounds(Some(self.0.to_str().unwrap().to_owned()), "ns", bounds);
        tokio::task::spawn_local(sender);
        publisher
    }
}

impl Drop for Socketfile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

fn start(pid: u32) -> Event {
    Event::Start { id: "c".into(), pid }
}

fn exit(pid: u32) -> Event {
    let exit = Exit { status: 137, at: SystemTime::UNIX_EPOCH + Duration::new(7, 9) };
    Event::Exit { container: "c".into(), id: "e".into(), pid, exit }
}

fn delete(pid: u32) -> Event {
    Event::Delete { id: "c".into(), pid, exit: Exit { status: 0, at: SystemTime::UNIX_EPOCH } }
}

#[test]
fn order_is_kept_while_containerd_is_away_and_back() {
    let socket = Socketfile::new("away");
    run(async {
        let (publisher, containerd) = (socket.publisher(QUICK), Containerd::default());
        (0..10).for_each(|pid| publisher.publish(start(pid)));
        assert!(!publisher.flush(Duration::from_millis(50)).await, "there is no containerd yet");

        let mut first = containerd.serve(&socket).await;
        assert!(publisher.flush(LONG).await);
        assert_eq!(containerd.pids(), (0..10).collect::<Vec<_>>());

        first.shutdown().await.unwrap();
        drop(first);
        (10..60).for_each(|pid| publisher.publish(start(pid)));
        assert!(!publisher.flush(Duration::from_millis(50)).await, "containerd is away");
        let _second = containerd.serve(&socket).await;
        assert!(publisher.flush(LONG).await);
        assert_eq!(containerd.pids(), (0..60).collect::<Vec<_>>());
        assert_eq!(containerd.0.lock().unwrap().most_at_once, 1);
    });
}

#[test]
fn a_refused_event_is_dropped_and_a_late_one_repeated() {
    let socket = Socketfile::new("codes");
    run(async {
        let containerd = Containerd::default()
            .answer("/tasks/exec-added", &[Answer::Code(Code::INVALID_ARGUMENT)])
            .answer("/tasks/exit", &[Answer::Code(Code::UNAVAILABLE), Answer::Code(Code::DEADLINE_EXCEEDED)]);
        let _server = containerd.serve(&socket).await;
        let publisher = socket.publisher(QUICK);
        publisher.publish(start(1));
        publisher.publish(Event::ExecAdded { container: "c".into(), exec: "e".into() });
        publisher.publish(exit(2));
        publisher.publish(delete(3));
        assert!(publisher.flush(LONG).await);
        assert_eq!(containerd.topics(), ["/tasks/start", "/tasks/exit", "/tasks/delete"]);
        assert_eq!(containerd.0.lock().unwrap().tries, 6);
    });
}

#[test]
fn a_containerd_that_hangs_is_asked_again() {
    let socket = Socketfile::new("hang");
    run(async {
        let containerd = Containerd::default().answer("/tasks/start", &[Answer::Never, Answer::Never]);
        let _server = containerd.serve(&socket).await;
        let publisher = socket.publisher(QUICK);
        publisher.publish(start(1));
        publisher.publish(exit(2));
        let begin = Instant::now();
        assert!(publisher.flush(LONG).await);
        assert!(begin.elapsed() >= QUICK.attempt * 2, "{:?}", begin.elapsed());
        assert_eq!(containerd.topics(), ["/tasks/start", "/tasks/exit"]);
        assert_eq!(containerd.0.lock().unwrap().tries, 4);
    });
}

#[test]
fn a_listener_that_accepts_nobody_does_not_stop_the_loop() {
    let socket = Socketfile::new("backlog");
    run(async {
        let listener = std::os::unix::net::UnixListener::bind(&socket.0).unwrap();
        // Once the backlog is full a blocking connect waits without bound.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _waiting: Vec<_> = std::iter::from_fn(|| {
            let s = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Unix,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::SOCK_NONBLOCK,
                None,
            )
            .unwrap();
            let address = nix::sys::socket::UnixAddr::new(&socket.0).unwrap();
            nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&s), &address).ok().map(|()| s)
        })
        .collect();
        let publisher = socket.publisher(QUICK);
        publisher.publish(start(1));
        let begin = Instant::now();
        assert!(!publisher.flush(Duration::from_millis(100)).await);
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    });
}

#[test]
fn the_bound_drops_the_oldest_but_no_exit_and_no_delete() {
    let socket = Socketfile::new("bound");
    run(async {
        let size = encode(start(1), "ns", SystemTime::now()).size;
        let publisher = socket.publisher(Bounds { bytes: size * 4, ..QUICK });
        // The first leaves the queue at once and is in flight for as long as there is no containerd.
        publisher.publish(start(100));
        tokio::time::sleep(Duration::from_millis(20)).await;
        publisher.publish(exit(1));
        (2..10).for_each(|pid| publisher.publish(start(pid)));
        (10..20).for_each(|pid| publisher.publish(delete(pid)));
        publisher.publish(start(20));
        let containerd = Containerd::default();
        let _server = containerd.serve(&socket).await;
        assert!(publisher.flush(LONG).await);
        let topics = containerd.topics();
        assert_eq!(topics[..2], ["/tasks/start", "/tasks/exit"]);
        assert_eq!(topics[2..], ["/tasks/delete"; 10], "ten deletes are over the bound alone");
        assert_eq!(publisher.0.bytes.get(), 0);
    });
}

#[test]
fn without_an_address_nothing_is_kept() {
    run(async {
        let (publisher, _sender) = Publisher::new(None, "ns");
        publisher.publish(exit(1));
        assert!(publisher.flush(Duration::ZERO).await);
    });
}

#[test]
fn the_envelope_says_when_where_and_what() {
    let socket = Socketfile::new("envelope");
    run(async {
        let containerd = Containerd::default();
        let publisher = socket.publisher(QUICK);
        let before = SystemTime::now();
        publisher.publish(exit(42));
        let after = SystemTime::now();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _server = containerd.serve(&socket).await;
        assert!(publisher.flush(LONG).await);
        let (envelope, metadata) = containerd.0.lock().unwrap().taken.remove(0);
        let at: SystemTime = envelope.timestamp.unwrap().into();
        assert!(before <= at && at <= after, "when it was queued, not when it was sent");
        assert_eq!(envelope.namespace, "ns");
        assert_eq!(metadata["containerd-namespace-ttrpc"], ["ns"]);
        let m = task::TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
        assert_eq!((m.container_id.as_str(), m.id.as_str(), m.pid, m.exit_status), ("c", "e", 42, 137));
        assert_eq!((m.exited_at.seconds, m.exited_at.nanos), (7, 9));
    });
}

#[test]
fn type_names_are_the_messages_own() {
    let names = |event| message(event).1.type_url;
    let stdio = StdioUris::default();
    let create = Event::Create { id: "c".into(), bundle: "/b".into(), rootfs: vec![], stdio, pid: 1 };
    assert_eq!(names(create), task::TaskCreate::descriptor().full_name());
    assert_eq!(names(start(1)), task::TaskStart::descriptor().full_name());
    assert_eq!(names(exit(1)), task::TaskExit::descriptor().full_name());
    assert_eq!(names(delete(1)), task::TaskDelete::descriptor().full_name());
    let (container, exec) = (String::new(), String::new());
    let added = Event::ExecAdded { container: container.clone(), exec: exec.clone() };
    assert_eq!(names(added), task::TaskExecAdded::descriptor().full_name());
    let started = Event::ExecStarted { container, exec, pid: 1 };
    assert_eq!(names(started), task::TaskExecStarted::descriptor().full_name());
    let id = String::new;
    assert_eq!(names(Event::Paused { id: id() }), task::TaskPaused::descriptor().full_name());
    assert_eq!(names(Event::Resumed { id: id() }), task::TaskResumed::descriptor().full_name());
    assert_eq!(names(Event::Oom { container: id() }), task::TaskOOM::descriptor().full_name());
}

#[test]
fn a_create_carries_its_mounts_and_streams() {
    let kind = RootfsMount {
        kind: "overlay".into(),
        source: "overlay".into(),
        target: "t".into(),
        options: vec!["lowerdir=/a:/b".into()],
    };
    let stdio = StdioUris { stdin: "/i".into(), stdout: "/o".into(), stderr: "/e".into(), terminal: true };
    let create = Event::Create { id: "c".into(), bundle: "/b".into(), rootfs: vec![kind], stdio, pid: 3 };
    let m = task::TaskCreate::parse_from_bytes(&message(create).1.value).unwrap();
    assert_eq!((m.container_id.as_str(), m.bundle.as_str(), m.pid), ("c", "/b", 3));
    let mount = &m.rootfs[0];
    assert_eq!((mount.type_.as_str(), mount.source.as_str(), mount.target.as_str()), ("overlay", "overlay", "t"));
    assert_eq!(mount.options, ["lowerdir=/a:/b"]);
    assert_eq!((m.io.stdin.as_str(), m.io.stdout.as_str(), m.io.stderr.as_str()), ("/i", "/o", "/e"));
    assert!(m.io.terminal);
}
