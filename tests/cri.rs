//! Pods, by containerd's CRI plugin, as the kubelet runs them.

mod common;

use common::cri::{Cri, IDLE};
use serde_json::json;

#[test]
fn a_pod_has_one_shim() {
    let cri = Cri::start();
    let pod = cri.run_pod("pod", json!({}));
    let first = cri.run(&pod, "first", IDLE, json!({}));
    let second = cri.run(&pod, "second", IDLE, json!({}));
    assert_eq!(cri.containerd.shims().len(), 1);
    assert_eq!(cri.sh(&first, "echo hello"), "hello");
    assert_eq!(cri.sh(&second, "hostname"), "pod");
    cri.remove_all(&[pod]);
}
