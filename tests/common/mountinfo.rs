//! proc_pid_mountinfo(5), as a container prints it.

/// One line.
#[derive(Clone, Debug)]
pub struct MountLine {
    pub root: String,
    pub point: String,
    pub options: String,
    /// `shared:1 master:2`
    pub propagation: String,
    pub fstype: String,
    pub source: String,
    pub super_options: String,
}

impl MountLine {
    /// True when the mount's options have all these words.
    pub fn has(&self, words: &[&str]) -> bool {
        words.iter().all(|word| self.options.split(',').any(|option| option == *word))
    }
}

/// Every line.
pub fn parse(table: &str) -> Vec<MountLine> {
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ").unwrap_or_else(|| panic!("mountinfo: {line:?}"));
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        MountLine {
            root: left[3].to_string(),
            point: left[4].to_string(),
            options: left[5].to_string(),
            propagation: left[6..].join(" "),
            fstype: right[0].to_string(),
            source: right[1].to_string(),
            super_options: right[2].to_string(),
        }
    };
    table.lines().map(line).collect()
}

/// The topmost mount at a path.
pub fn at(table: &str, point: &str) -> MountLine {
    parse(table).into_iter().rfind(|line| line.point == point).unwrap_or_else(|| panic!("no {point} in\n{table}"))
}
