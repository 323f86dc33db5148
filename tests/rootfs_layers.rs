//! An image of more layers than a page of mount options has room for, as containerd unpacks and mounts it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use common::containerd::{Containerd, IMAGE, text};
use serde_json::json;

const LAYERS: usize = 130;
const NAME: &str = "localhost/many:latest";

fn tar(directory: &Path, archive: &Path) {
    let status = Command::new("tar").arg("-cf").arg(archive).arg("-C").arg(directory).arg(".").status();
    assert!(status.expect("tar").success(), "{}", archive.display());
}

/// As `docker save` writes one: busybox, and layers of a file each over it that all replace the file `top`.
fn image(work: &Path, archive: &Path) {
    let (layers, root) = (work.join("layers"), work.join("root"));
    fs::create_dir_all(&layers).unwrap();
    fs::create_dir_all(root.join("bin")).unwrap();
    assert!(Command::new("cp").arg("/bin/busybox").arg(root.join("bin/busybox")).status().unwrap().success());
    for name in ["sh", "cat", "ls", "wc", "touch"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    let names: Vec<_> = (0..LAYERS).map(|number| format!("{number}.tar")).collect();
    tar(&root, &layers.join(&names[0]));
    for (number, name) in names.iter().enumerate().skip(1) {
        let layer = work.join("layer");
        let _ = fs::remove_dir_all(&layer);
        fs::create_dir_all(layer.join("layers")).unwrap();
        fs::write(layer.join("layers").join(number.to_string()), "").unwrap();
        fs::write(layer.join("top"), format!("{number}\n")).unwrap();
        tar(&layer, &layers.join(name));
    }
    let sums = Command::new("sha256sum").args(&names).current_dir(&layers).output().expect("sha256sum");
    let digests: Vec<_> = text(&sums.stdout).lines().map(|line| format!("sha256:{}", &line[..64])).collect();
    assert_eq!(digests.len(), LAYERS);
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": arch, "os": "linux",
        "config": {"Env": ["PATH=/bin"]}, "rootfs": {"type": "layers", "diff_ids": digests},
    });
    fs::write(layers.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": names}]);
    fs::write(layers.join("manifest.json"), manifest.to_string()).unwrap();
    tar(&layers, archive);
}

common::on_each_containerd! { an_image_of_130_layers_runs }

fn an_image_of_130_layers_runs(containerd: Containerd) {
    let archive = containerd.dir.join("many.tar");
    image(&containerd.dir.join("many"), &archive);
    let args = containerd.run_args("many", &["--rm"], &["sh", "-c", "ls /layers | wc -l; cat /top; touch /written"]);
    let snapshotter = args.iter().skip_while(|arg| *arg != "--snapshotter").nth(1).expect("a snapshotter").clone();
    if snapshotter != "overlayfs" {
        return common::skipped("an_image_of_130_layers_runs", "no overlay on the file system of /tmp");
    }
    containerd.ctr_ok(&["image", "import", "--snapshotter", &snapshotter, archive.to_str().unwrap()]);
    let args: Vec<_> = args.iter().map(|arg| if arg == IMAGE { NAME } else { arg }).collect();
    let output = containerd.ctr(&args);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(text(&output.stdout), format!("{}\n{}\n", LAYERS - 1, LAYERS - 1));
    containerd.assert_nothing_left();
}
