//! Step `peaks`: what this machine can do at best, by kernels that do nothing else (`csrc/peaks.cu`), and beside it what
//! PyTorch makes of it.

use crate::report::{self, Found, Numbers, Outcome};
use crate::{Open, Options};
use kernels::cuda::{Device, Launch, peaks};
use std::process::Command;
use std::time::Instant;

const STEP: &str = "peaks";
/// Blocks a multiprocessor.
const BLOCKS: usize = 8;
const GRAPH_NODES: usize = 500;

type Checked<T> = Result<T, String>;

pub(crate) fn cases(_: &Options) -> Vec<String> {
    ["read", "copy", "products", "latency", "torch"].map(str::to_owned).to_vec()
}

pub(crate) fn run<D: Device>(case: &str, options: &Options, open: Open<'_, D>) -> Result<(), String> {
    if case == "torch" {
        torch(options.torch.as_deref());
        return Ok(());
    }
    report::case(STEP, case, Outcome::Measured, || {
        let bench = Bench::new(open()?, options)?;
        match case {
            "read" => bench.read(),
            "copy" => bench.copy(),
            "products" => bench.products(),
            _ => bench.latency(),
        }
    });
    Ok(())
}

/// For [`replays`]: how often.
#[derive(Clone, Copy)]
pub(crate) struct Repeats {
    pub(crate) warm: usize,
    pub(crate) timed: usize,
    /// Seconds that a graph takes at least, so that what surrounds it does not count.
    pub(crate) graph: f64,
}

impl Repeats {
    pub(crate) fn of(options: &Options) -> Self {
        match (options.sim, options.quick) {
            (true, _) => Self { warm: 1, timed: 2, graph: 0.0 },
            (false, true) => Self { warm: 3, timed: 20, graph: 2e-3 },
            (false, false) => Self { warm: 20, timed: 100, graph: 2e-3 },
        }
    }
}

/// Median and 95th percentile, in seconds, of `launches` by graph replay. The graph holds them as often as it takes.
pub(crate) fn replays<D: Device>(device: &D, launches: &[Launch], repeats: Repeats) -> Checked<(f64, f64)> {
    const NODES_MAX: usize = 4000;
    let word = device.allocate(4, "a word").map_err(said)?;
    let time = |run: &dyn Fn() -> kernels::Result<()>| -> Checked<f64> {
        device.read(&word, 0, &mut [0; 4]).map_err(said)?;
        let clock = Instant::now();
        run().and_then(|()| device.read(&word, 0, &mut [0; 4])).map_err(said)?;
        Ok(clock.elapsed().as_secs_f64())
    };
    time(&|| device.run(launches))?;
    let once = time(&|| device.run(launches))?.max(1e-7);
    let fit = (NODES_MAX / launches.len().max(1)).max(1);
    let times = ((repeats.graph / once).ceil() as usize).clamp(1, fit);
    let graph = device.capture(&launches.repeat(times)).map_err(said)?;
    for _ in 0..repeats.warm {
        time(&|| device.replay(&graph))?;
    }
    let seconds = (0..repeats.timed.max(1)).map(|_| time(&|| device.replay(&graph)));
    let mut seconds = seconds.collect::<Checked<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share) as usize] / times as f64;
    Ok((at(0.5), at(0.95)))
}

fn said(error: kernels::KernelError) -> String {
    error.to_string()
}

struct Bench<D: Device> {
    device: D,
    repeats: Repeats,
    blocks: usize,
    /// Bytes that are moved to be timed, and to be checked.
    large: usize,
    small: usize,
    rounds: usize,
}

impl<D: Device> Bench<D> {
    fn new(device: D, options: &Options) -> Checked<Self> {
        let tile = peaks::TILE_BYTES;
        let free = device.free_bytes().map_err(said)? as usize;
        let large = if options.sim { 4 * tile } else { (4 << 30).min(free / 4) / tile * tile };
        Ok(Self {
            blocks: BLOCKS * device.about().multiprocessors as usize,
            device,
            repeats: Repeats::of(options),
            large,
            small: 3 * tile,
            rounds: if options.sim { 3 } else { 20_000 },
        })
    }

    fn noise(&self, bytes: usize, seed: i32) -> Checked<D::Memory> {
        let memory = self.device.allocate(bytes, "noise").map_err(said)?;
        self.device.run(&[peaks::fill::<D>(&memory, seed)]).map_err(said)?;
        Ok(memory)
    }

    fn bytes(&self, memory: &D::Memory) -> Checked<Vec<u8>> {
        let mut bytes = vec![0; D::bytes(memory)];
        self.device.read(memory, 0, &mut bytes).map_err(said)?;
        Ok(bytes)
    }

    fn sums(&self) -> Checked<D::Memory> {
        self.device.allocate(4 * 256 * self.blocks, "sums").map_err(said)
    }

    fn read(&self) -> Checked<Found> {
        let xor =
            |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().fold(0, |all, b| all ^ u32::from_ne_bytes(*b));
        let (few, sums) = (self.noise(self.small, 1)?, self.sums()?);
        let launch = peaks::read::<D>(&few, &sums, self.small, self.blocks).map_err(said)?;
        self.device.run(&[launch]).map_err(said)?;
        let (got, want) = (xor(&self.bytes(&sums)?), xor(&self.bytes(&few)?));
        if got != want || want == 0 {
            return Err(format!(
                "the exclusive or of what was read is {got:08x}, of what is there {want:08x}"
            ));
        }
        let from = self.noise(self.large, 2)?;
        let launch = peaks::read::<D>(&from, &sums, self.large, self.blocks).map_err(said)?;
        let (median, p95) = replays(&self.device, &[launch], self.repeats)?;
        Ok(Found::default()
            .with("GB", self.large as f64 / 1e9)
            .with("GB/s", self.large as f64 / median / 1e9)
            .with("GB/s at p95", self.large as f64 / p95 / 1e9))
    }

    fn copy(&self) -> Checked<Found> {
        let (few, to) = (self.noise(self.small, 3)?, self.noise(self.small, 4)?);
        let launch = peaks::copy::<D>(&few, &to, self.small, self.blocks).map_err(said)?;
        self.device.run(&[launch]).map_err(said)?;
        if self.bytes(&few)? != self.bytes(&to)? {
            return Err("a copy differs".into());
        }
        let half = self.large / 2 / peaks::TILE_BYTES * peaks::TILE_BYTES;
        let (from, to) = (self.noise(half, 5)?, self.noise(half, 6)?);
        let launch = peaks::copy::<D>(&from, &to, half, self.blocks).map_err(said)?;
        let (median, _) = replays(&self.device, &[launch], self.repeats)?;
        Ok(Found::says("read and written").with("GB/s", 2.0 * half as f64 / median / 1e9))
    }

    fn products(&self) -> Checked<Found> {
        let to = self.sums()?;
        let blocks = self.blocks / BLOCKS * 2;
        let launch = peaks::products::<D>(&to, self.rounds, blocks).map_err(said)?;
        let (median, _) = replays(&self.device, &[launch], self.repeats)?;
        let (got, want) = (self.bytes(&to)?, peaks::products_expect(self.rounds));
        let got = got.as_chunks::<4>().0[..256 * blocks].iter().map(|b| f32::from_ne_bytes(*b));
        // Each of 32 sums stays below 2^24, so that nothing is rounded before they are added up.
        if let Some(wrong) = got.into_iter().find(|g| (g - want).abs() > want * 1e-6) {
            return Err(format!("a thread has {wrong}, want {want}"));
        }
        let flop = peaks::products_flop(self.rounds, blocks);
        Ok(Found::says("bf16 mma.sync, ones").with("TFLOP/s", flop / median / 1e12))
    }

    fn latency(&self) -> Checked<Found> {
        let word = self.device.allocate(4, "ticks").map_err(said)?;
        let tick = peaks::tick::<D>(&word).map_err(said)?;
        let many = vec![tick; GRAPH_NODES];
        let clock = |run: &dyn Fn() -> kernels::Result<()>| -> Checked<f64> {
            let clock = Instant::now();
            run().and_then(|()| self.device.read(&word, 0, &mut [0; 4])).map_err(said)?;
            Ok(clock.elapsed().as_secs_f64() * 1e6)
        };
        let (one, graph) = (self.device.capture(&[tick]), self.device.capture(&many));
        let (one, graph) = (one.map_err(said)?, graph.map_err(said)?);
        let rounds = self.repeats.warm + self.repeats.timed;
        let median = |run: &dyn Fn() -> kernels::Result<()>| -> Checked<f64> {
            let mut us = (0..rounds).map(|_| clock(run)).collect::<Checked<Vec<f64>>>()?;
            us.sort_by(f64::total_cmp);
            Ok(us[us.len() / 2])
        };
        let single = median(&|| self.device.replay(&one))?;
        let nodes = median(&|| self.device.replay(&graph))?;
        let launches = median(&|| self.device.run(&many))?;
        let mut bytes = [0; 4];
        self.device.read(&word, 0, &mut bytes).map_err(said)?;
        let (ticks, want) = (u32::from_ne_bytes(bytes) as usize, rounds * (1 + 2 * GRAPH_NODES));
        if ticks != want {
            return Err(format!("{ticks} ticks of {want}"));
        }
        Ok(Found::default()
            .with("us a graph of one node and its wait", single)
            .with("us a node", (nodes - single).max(0.0) / (GRAPH_NODES - 1) as f64)
            .with("us a launch", launches / GRAPH_NODES as f64))
    }
}

/// One line of JSON a case: `{"case": …, "detail": …, "numbers": {…}}`, or `{"absent": why}`.
fn torch(script: Option<&str>) {
    #[derive(serde::Deserialize)]
    struct Line {
        #[serde(default)]
        case: String,
        #[serde(default)]
        detail: String,
        #[serde(default)]
        numbers: Numbers,
        absent: Option<String>,
    }
    let absent = |why: &str| report::emit(STEP, "torch", Outcome::Absent, Found::says(why));
    let Some(script) = script else { return absent("no --torch FILE") };
    // Killed with this process it would live on, and disturb what is timed next.
    let Ok(output) = Command::new("timeout").args(["-k", "2", "40", "python3", script]).output() else {
        return absent("there is no `timeout` to end it with");
    };
    let mut heard = false;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match serde_json::from_str::<Line>(line) {
            Ok(Line { absent: Some(why), .. }) => return absent(&why),
            Ok(Line { case, detail, numbers, .. }) => {
                heard = true;
                report::emit(STEP, &format!("torch {case}"), Outcome::Measured, Found { detail, numbers });
            }
            Err(_) => {}
        }
    }
    if !heard {
        let said = String::from_utf8_lossy(&output.stderr);
        absent(said.lines().last().unwrap_or("torch_peaks.py says nothing"));
    }
}
