//! The events of a containerd, as `ctr events` prints them.

use super::{Containerd, IMAGE, eventually};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

/// An event as `ctr events` prints it.
#[derive(Clone, Debug)]
pub struct Event {
    /// `/tasks/exit`.
    pub topic: String,
    /// The message as JSON.
    pub message: serde_json::Value,
}

impl Event {
    // 2026-11-21 19:19:20.123456789 +0000 UTC default /tasks/exit {"container_id":...}
    fn parse(line: &str) -> Option<Self> {
        let (head, message) = line.split_once(" {")?;
        let message = serde_json::from_str(&format!("{{{message}")).ok()?;
        Some(Self { topic: head.rsplit(' ').next()?.to_string(), message })
    }

    /// The text of a field, or "".
    pub fn text(&self, field: &str) -> &str {
        self.message[field].as_str().unwrap_or_default()
    }

    /// The number of a field; absent is 0 in protobuf.
    pub fn number(&self, field: &str) -> u64 {
        self.message[field].as_u64().unwrap_or_default()
    }
}

/// A running `ctr events`.
pub struct Events {
    ctr: Child,
    seen: Arc<Mutex<Vec<Event>>>,
}

impl Events {
    /// Starts to collect those of a containerd; returns when they are seen.
    pub fn collect(containerd: &Containerd) -> Self {
        let mut ctr = containerd.command(&["events"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(ctr.stdout.take().unwrap()).lines();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let events = Events { ctr, seen: seen.clone() };
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                seen.lock().unwrap().extend(Event::parse(&line));
            }
        });
        // ctr does not say when it has subscribed: make events until one is seen.
        let mut probe = 0;
        let subscribed = eventually(|| {
            probe += 1;
            containerd.ctr_ok(&["image", "label", IMAGE, &format!("probe={probe}")]);
            events.seen.lock().unwrap().iter().any(|event: &Event| event.topic == "/images/update")
        });
        assert!(subscribed, "ctr events shows nothing");
        events
    }

    /// The events of a container's tasks so far, in order.
    pub fn of(&self, id: &str) -> Vec<Event> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|e| e.topic.starts_with("/tasks/") && e.text("container_id") == id).cloned().collect()
    }

    /// Their topics, without `/tasks/`, once the last of them is `last` or patience has an end.
    pub fn topics_until(&self, id: &str, last: &str) -> Vec<String> {
        let topics = || self.of(id).iter().map(|e| e.topic["/tasks/".len()..].to_string()).collect::<Vec<_>>();
        eventually(|| topics().last().is_some_and(|topic| topic == last));
        // One that comes after the last would be wrong, and is to be seen.
        sleep(Duration::from_millis(200));
        topics()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.ctr.kill();
        let _ = self.ctr.wait();
    }
}
