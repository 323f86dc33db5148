//! The order of events: containerd's, always, whatever ends how fast, and however long containerd is away.

use std::time::Duration;

use common::block_on;
use common::bundle::Bundle;
use common::driver::open_pid;
use common::stdio::Io;
use common::world::{SOON, World};

fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"])
}

#[test]
fn events_of_a_container_that_ends_at_once_are_in_order() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b).await;
        for round in 1..=100 {
            world.run(&bundle).await;
            world.wait("one", "").await.unwrap();
            world.delete("one", "").await.unwrap();
            world.sink.wait_for(|events| events.len() >= 4 * round, SOON).await.unwrap();
        }
        let topics = world.sink.topics("one");
        for (round, life) in topics.chunks(4).enumerate() {
            assert_eq!(life, ["create", "start", "exit", "delete"], "round {round}");
        }
        assert_eq!(topics.len(), 400);
        world.close().await;
    });
}

/// The shim is stopped, at moments that differ, while a process starts and ends: then it finds both at the same time.
#[test]
fn a_start_and_an_exit_that_are_seen_together_are_told_in_order() {
    block_on(async {
        const ROUNDS: u64 = 60;
        let (world, one) = World::running("one", sleeping).await;
        let two = Bundle::new(&world.scratch, "two");
        let shim = open_pid(world.pid().await.unwrap()).unwrap();
        let signal = |signal| rustix::process::pidfd_send_signal(&shim, signal).unwrap();
        for round in 0..ROUNDS {
            let (id, exec) = if round % 2 > 0 { ("one", format!("x{round}")) } else { ("two", String::new()) };
            match id {
                "one" => world.exec(id, &exec, &one.process(&["true"]), &Io::null()).await.unwrap(),
                _ => drop(world.create(&two, &Io::null()).await.unwrap()),
            }
            let (task, name) = (world.task.clone(), exec.clone());
            let starting = tokio::spawn(async move { task.start(id, &name).await });
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            std::thread::sleep(Duration::from_micros(100 * round));
            signal(rustix::process::Signal::STOP);
            std::thread::sleep(Duration::from_millis(20));
            signal(rustix::process::Signal::CONT);
            starting.await.unwrap().unwrap();
            world.wait(id, &exec).await.unwrap();
            world.delete(id, &exec).await.unwrap();
        }
        assert_eq!(world.end("one").await, 137);
        world.sink.wait_topic("delete", "one", SOON).await.unwrap();
        for (round, life) in world.sink.topics("two").chunks(4).enumerate() {
            assert_eq!(life, ["create", "start", "exit", "delete"], "life {round}");
        }
        for round in (1..ROUNDS).step_by(2) {
            assert_eq!(
                world.sink.topics_of_exec(&format!("x{round}")),
                ["exec-added", "exec-started", "exit"],
                "exec {round}"
            );
        }
        world.close().await;
    });
}

#[test]
fn events_of_execs_that_end_at_once_are_in_order() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let process = bundle.process(&["true"]);
        for round in 0..50 {
            let exec = format!("x{round}");
            assert_eq!(world.exec_to_exit("one", &exec, &process, &Io::null()).await.unwrap().exit_status, 0);
        }
        assert_eq!(world.end("one").await, 137);
        world.sink.wait_topic("delete", "one", SOON).await.unwrap();
        for round in 0..50 {
            assert_eq!(world.sink.topics_of_exec(&format!("x{round}")), ["exec-added", "exec-started", "exit"]);
        }
        world.close().await;
    });
}

#[test]
fn the_exit_of_init_is_the_last() {
    block_on(async {
        for private in [true, false] {
            let change = |b: Bundle| if private { sleeping(b) } else { sleeping(b).without_namespace("pid") };
            let (world, bundle) = World::with("one", change).await;
            for _ in 0..5 {
                let before = world.sink.events().len();
                world.run(&bundle).await;
                for exec in ["a", "b", "c"] {
                    world.exec("one", exec, &bundle.process(&["sleep", "1000"]), &Io::null()).await.unwrap();
                    world.start("one", exec).await.unwrap();
                }
                assert_eq!(world.end("one").await, 137);
                let done = |events: &[common::events::Event]| events.last().is_some_and(|e| e.topic == "/tasks/delete");
                world.sink.wait_for(|events| events.len() > before && done(events), SOON).await.unwrap();
                let events = world.sink.events();
                let exits = events[before..].iter().filter(|event| event.topic == "/tasks/exit");
                let exits: Vec<_> = exits.map(|event| (event.exec_id.as_str(), event.exit_status)).collect();
                assert_eq!(exits.len(), 4, "{exits:?}");
                assert_eq!(exits[3], ("", 137), "private: {private}: {exits:?}");
            }
            world.close().await;
        }
    });
}
