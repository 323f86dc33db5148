use super::*;

fn marks(began: u64) -> [(Step, u64); 3] {
    [(Step::Judging, began), (Step::Forking, began + 7), (Step::Waiting, began + 3_000_000_000)]
}

fn stamps(moments: &[(usize, u64)]) -> [u64; ROOM] {
    let mut all = [0; ROOM];
    moments.iter().for_each(|(number, moment)| all[*number] = *moment);
    all
}

fn over(kind: Kind, container: &str, exec: &str) -> Over {
    let about = About { kind, container: container.into(), exec: exec.into(), wall: 0, began: 0 };
    Over { about, took: 1, outcome: Outcome::Done, gone: false, packed: Box::default() }
}

#[test]
fn what_is_packed_comes_out_again() {
    for began in [1, u64::MAX >> 2] {
        let children = [(0, began + 100), (1, began + 100), (70, began + (1 << 40))];
        let (ours, theirs) = unpack(&pack(began, &marks(began), children.into_iter()));
        assert_eq!(ours, marks(began).map(|(step, moment)| (step as u8, moment - began)));
        assert_eq!(theirs, children.map(|(number, moment)| (number, moment - began)));
    }
    assert_eq!(unpack(&[]), (vec![], vec![]));
}

#[test]
fn every_step_of_ours_has_its_own_name() {
    for (at, (step, name)) in STEPS.iter().enumerate() {
        assert_eq!(*step as usize, at, "{name}");
        assert_eq!(STEPS.iter().filter(|(_, other)| other == name).count(), 1, "{name}");
    }
}

/// Whatever is in the memory: nothing outside of the operation, nothing that goes back.
#[test]
fn a_child_is_believed_as_far_as_it_can_be_true() {
    let all = |moments: &[(usize, u64)]| believed(&stamps(moments), 1000, 2000).collect::<Vec<_>>();
    assert_eq!(all(&[(0, 1000), (2, 1500), (9, 2000)]), [(0, 1000), (2, 1500), (9, 2000)]);
    // Of the create that was before this start.
    assert_eq!(all(&[(0, 10), (1, 999), (5, 1500)]), [(5, 1500)]);
    assert_eq!(all(&[(0, 1500), (1, 1400), (2, 1600)]), [(0, 1500)]);
    assert_eq!(all(&[(0, 1500), (1, u64::MAX), (2, 1600)]), [(0, 1500)]);
    assert_eq!(all(&[]), []);
    let forged = std::array::from_fn(|at| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    assert!(believed(&forged, 1000, 2000).all(|(_, moment)| (1000..=2000).contains(&moment)));
}

#[test]
fn steps_lie_in_their_operation_and_the_childs_last_ends_when_it_is_heard() {
    let ours = [(Step::Judging, 10), (Step::Forking, 20), (Step::Waiting, 30), (Step::Announcing, 80)];
    let children = [(0, 25), (1, 40), (steps::EXECUTING_AT as u8, 60)];
    let mut over = over(Kind::Exec, "c", "e");
    (over.took, over.packed) = (90, pack(0, &ours, children.into_iter()));
    let told = over.tell();
    let spans: Vec<_> =
        told.steps.iter().map(|span| (span.step.as_str(), span.who, span.start_ns, span.took_ns)).collect();
    let child = |name| (name, Who::Child);
    assert_eq!(
        spans,
        [
            ("judging the specification", Who::Shim, 10, 10),
            ("forking", Who::Shim, 20, 10),
            ("waiting for the child", Who::Shim, 30, 50),
            ("announcing it", Who::Shim, 80, 10),
            (child("closing descriptors").0, Who::Child, 25, 15),
            (child("resetting signals").0, Who::Child, 40, 20),
            (child("executing the program").0, Who::Child, 60, 20),
        ]
    );
    assert!(told.steps[2].waits && !told.steps[6].waits);
}

/// Where its filter has forbidden it the clock.
#[test]
fn a_last_step_that_is_not_the_execve_says_that_more_followed() {
    let mut over = over(Kind::Exec, "c", "e");
    (over.took, over.packed) = (90, pack(0, &[(Step::Forking, 10)], [(0, 20)].into_iter()));
    assert_eq!(over.tell().steps[1].step, "closing descriptors, and what follows");
    over.outcome = Outcome::Failed;
    assert_eq!(over.tell().steps[1].step, "closing descriptors");
}

#[test]
fn the_ring_forgets_execs_and_what_is_gone_before_how_a_living_container_was_made() {
    let mut ring = Ring::default();
    for id in ["dead", "alive"] {
        ring.keep(over(Kind::Create, id, ""));
        ring.keep(over(Kind::Start, id, ""));
    }
    ring.keep(over(Kind::Delete, "dead", ""));
    for number in 0..1000 {
        ring.keep(over(Kind::Exec, "alive", &number.to_string()));
    }
    assert_eq!(ring.over.len(), KEPT);
    let kinds: Vec<_> = ring.over.iter().map(|over| (over.about.kind, over.about.container.as_str())).collect();
    assert_eq!(kinds[..3], [(Kind::Create, "alive"), (Kind::Start, "alive"), (Kind::Exec, "alive")]);
    assert_eq!(ring.over.back().unwrap().about.exec, "999");
    // And where there are more living ones than there is room, the oldest.
    for number in 0..1000 {
        ring.keep(over(Kind::Create, &number.to_string(), ""));
    }
    assert_eq!((ring.over.len(), ring.over[0].about.container.as_str()), (KEPT, "968"));
}

#[test]
fn an_operation_is_told_while_it_is_under_way_and_after() {
    let traces = Traces::default();
    let under_way = traces.begin(Kind::Create, "a", "", Step::Judging);
    let stamps = Rc::new(Pages::default().stamps("a", Clock::Monotonic).unwrap());
    let child = stamps.in_child();
    under_way.child(Some(stamps));
    under_way.at(Step::Waiting);
    child.stamp(0);
    assert_eq!(traces.of("b", None), []);
    let told = traces.of("a", None);
    assert_eq!((told.len(), told[0].outcome), (1, Outcome::UnderWay));
    assert_eq!(told[0].steps[2].step, "closing descriptors");
    under_way.done();
    drop(under_way);
    let told = traces.of("a", None);
    assert_eq!((told.len(), told[0].outcome, traces.0.borrow().under_way.len()), (1, Outcome::Done, 0));
    assert_eq!(Operations::from_json(&Operations { operations: told.clone() }.to_json()).unwrap().operations, told);
}

#[test]
fn an_exec_that_nobody_starts_leaves_nothing_and_ids_are_bounded() {
    let traces = Traces::default();
    let exec = traces.begin(Kind::Exec, "a", "e", Step::Judging);
    exec.at(Step::Client);
    drop(exec);
    assert_eq!(traces.of("a", None), []);
    let long = "é".repeat(LONGEST_ID);
    drop(traces.begin(Kind::Exec, "a", &long, Step::Judging));
    assert_eq!(traces.of("a", Some(&long))[0].exec.len(), LONGEST_ID);
}
