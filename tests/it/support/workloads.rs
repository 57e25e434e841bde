//! Builds with known durations, as in real CI: generated from a seed, the same on every machine. Tests and
//! the makespan benchmark share them.

/// A build with known durations and edges. Steps are numbered in a pipeline's order: parents first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Workload {
    pub(crate) family: &'static str,
    pub(crate) durations_ms: Vec<u64>,
    /// From parents to children.
    pub(crate) edges: Vec<(usize, usize)>,
}

/// Generates workloads of one family, larger ones at higher numbers.
type Family = fn(&mut Random, usize) -> Workload;

/// Eight families of five sizes.
const FAMILIES: [(&str, Family); 8] = [
    ("stages", stages),
    ("shards", shards),
    ("monorepo", monorepo),
    ("platforms", platforms),
    ("matrix", matrix),
    ("chains", chains),
    ("merges", merges),
    ("tangle", tangle),
];

/// Returns the forty workloads.
pub(crate) fn forty() -> Vec<Workload> {
    let mut random = Random(0x5eed_0f40_b01d_face);
    let mut all = Vec::new();
    for (family, make) in FAMILIES {
        for size in 1..=5 {
            all.push(Workload { family, ..make(&mut random, size) });
        }
    }
    all
}

impl Workload {
    /// Adds a step after `parents`, and returns its number.
    fn step(&mut self, duration_ms: u64, parents: &[usize]) -> usize {
        let step = self.durations_ms.len();
        self.durations_ms.push(duration_ms);
        self.edges.extend(parents.iter().map(|&parent| (parent, step)));
        step
    }
}

/// Xorshift: the same numbers on every machine and with every version of every dependency.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }

    /// Returns the time of a command. Times are spread over orders of magnitude, from one to about sixteen
    /// times `least_seconds`, and short ones are as likely as long ones.
    fn time(&mut self, least_seconds: usize) -> u64 {
        let octave = self.below(4);
        let within = 1_000 + self.below(1_000);
        (least_seconds << octave) as u64 * within as u64
    }

    /// Returns `count` of `from`, each at most once.
    fn some(&mut self, from: &[usize], count: usize) -> Vec<usize> {
        let mut left = from.to_vec();
        (0..count.min(from.len())).map(|_| left.swap_remove(self.below(left.len()))).collect()
    }
}

/// Stages, in which every job waits for one or two jobs of the previous stage.
fn stages(random: &mut Random, size: usize) -> Workload {
    let mut work = Workload::default();
    let mut before = vec![work.step(random.time(5), &[])];
    for _ in 0..3 + size {
        let jobs = 2 + random.below(4 * size);
        before = (0..jobs)
            .map(|_| {
                let count = 1 + random.below(2);
                let parents = random.some(&before, count);
                work.step(random.time(10), &parents)
            })
            .collect();
    }
    work.step(random.time(2), &before);
    work
}

/// A build, shards of its tests, and a report.
fn shards(random: &mut Random, size: usize) -> Workload {
    let mut work = Workload::default();
    let checkout = work.step(random.time(2), &[]);
    let build = work.step(random.time(30), &[checkout]);
    let lint = work.step(random.time(10), &[checkout]);
    let mut ends: Vec<_> = (0..8 * size).map(|_| work.step(random.time(15), &[build])).collect();
    ends.push(lint);
    let report = work.step(random.time(2), &ends);
    work.step(random.time(5), &[report]);
    work
}

/// Packages that need other packages, each built, checked and tested; then steps that combine all of them.
fn monorepo(random: &mut Random, size: usize) -> Workload {
    let mut work = Workload::default();
    let install = work.step(random.time(20), &[]);
    let (mut builds, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..6 * size {
        let needs = random.below(4);
        let mut parents = random.some(&builds, needs);
        parents.push(install);
        let build = work.step(random.time(8), &parents);
        ends.push(work.step(random.time(3), &[install]));
        ends.push(work.step(random.time(10), &[build]));
        if random.below(3) == 0 {
            ends.push(work.step(random.time(60), &[build]));
        }
        builds.push(build);
    }
    work.step(random.time(20), &builds);
    work.step(random.time(2), &ends);
    work
}

/// The same few steps on each platform, some of which are slower, and one release.
fn platforms(random: &mut Random, size: usize) -> Workload {
    let mut work = Workload::default();
    let (build, test, package) = (random.time(30), random.time(40), random.time(10));
    let packages: Vec<_> = (0..2 + size)
        .map(|_| {
            let slowness = 1 + random.below(4) as u64;
            let built = work.step(build * slowness, &[]);
            let tested = work.step(test * slowness, &[built]);
            work.step(package * slowness, &[tested])
        })
        .collect();
    work.step(random.time(5), &packages);
    work
}

/// Versions by systems, which differ only in their duration, after one quick check.
fn matrix(random: &mut Random, size: usize) -> Workload {
    let mut work = Workload::default();
    let quick = work.step(random.time(2), &[]);
    let cells: Vec<_> = (0..(2 + size) * 3).map(|_| work.step(random.time(40), &[quick])).collect();
    for cell in cells.chunks(3) {
        work.step(random.time(5), cell);
    }
    work
}

/// Independent chains of very different lengths.
fn chains(random: &mut Random, size: usize) -> Workload {
    let mut work = Workload::default();
    for _ in 0..3 * size {
        let mut last = work.step(random.time(5), &[]);
        for _ in 0..random.below(12) {
            last = work.step(random.time(5), &[last]);
        }
    }
    work
}

/// Many small outputs that are merged two by two, as linkers and reports do.
fn merges(random: &mut Random, size: usize) -> Workload {
    let mut work = Workload::default();
    let mut level: Vec<_> = (0..6 * size).map(|_| work.step(random.time(10), &[])).collect();
    while level.len() > 1 {
        level = level.chunks(2).map(|pair| work.step(random.time(5), pair)).collect();
    }
    work
}

/// Steps that wait for up to three steps among the last dozen.
fn tangle(random: &mut Random, size: usize) -> Workload {
    let mut work = Workload::default();
    for step in 0..25 * size {
        let near: Vec<_> = (step.saturating_sub(12)..step).collect();
        let count = random.below(4);
        let parents = random.some(&near, count);
        work.step(random.time(5), &parents);
    }
    work
}
