//! Graphs of the lists of launches that were met before.

use super::device::{Device, Launch};
use crate::error::Result;

/// Graphs kept: a decode step has one a bucket of tokens and of outputs, and few buckets are in use at a time.
const GRAPHS_MAX: usize = 64;
/// Launches of a list that is kept: a deep model has some 1,200. Where attention takes many passes, launching is the least.
pub(super) const LAUNCHES_MAX: usize = 2048;

pub(super) struct Graphs<D: Device> {
    /// The least recently used first.
    known: Vec<(Vec<Launch>, D::Graph)>,
}

impl<D: Device> Graphs<D> {
    pub(super) fn new() -> Self {
        Self { known: Vec::new() }
    }

    pub(super) fn clear(&mut self) {
        self.known.clear();
    }

    /// Runs the list, as a graph if there is memory for one.
    pub(super) fn run(&mut self, device: &D, list: &[Launch]) -> Result<()> {
        if list.len() > LAUNCHES_MAX {
            return device.run(list);
        }
        let known = self.known.iter().rposition(|(launches, _)| are_same(launches, list));
        let graph = match known {
            Some(at) => self.known.remove(at),
            None => {
                if self.known.len() == GRAPHS_MAX {
                    self.known.remove(0);
                }
                match device.capture(list) {
                    Ok(graph) => (list.to_vec(), graph),
                    // Graphs take memory. A step needs none, and whatever else is wrong is wrong with its launches too.
                    Err(_) => {
                        self.clear();
                        return device.run(list);
                    }
                }
            }
        };
        let ran = device.replay(&graph.1);
        self.known.push(graph);
        ran
    }
}

/// From the end: steps of as many tokens differ in how many of them have logits, which comes last.
fn are_same(a: &[Launch], b: &[Launch]) -> bool {
    a.len() == b.len() && a.iter().rev().eq(b.iter().rev())
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::super::device::{Kernel, ParamBytes};
    use super::super::sim::{Emulator, Mode};
    use super::*;

    /// Writes 4 words a thread.
    static PLACE: Kernel =
        Kernel { name: "smxx_u32_probe_place", file: "probe", threads: 64, shared_bytes_max: 16 };

    /// What is known after lists of launches by the number of their blocks.
    fn known(lists: &[&[u32]]) -> Vec<Vec<u32>> {
        let emulator = Emulator::new(Mode::FAST, 80);
        let memory = emulator.allocate(1 << 17, "places").unwrap();
        let mut params = ParamBytes::zeros(24);
        params.put(8, &Emulator::address(&memory).0.to_ne_bytes());
        let mut graphs = Graphs::new();
        for list in lists {
            let launch =
                |&blocks: &u32| Launch { kernel: &PLACE, grid: [blocks, 1, 1], shared_bytes: 16, params };
            let list = Vec::from_iter(list.iter().map(launch));
            graphs.run(&emulator, &list).unwrap();
            // What ran last is that list's own.
            let own = list.len() > LAUNCHES_MAX || graphs.known.last() == Some(&(list.clone(), list));
            assert!(own, "{:?}", graphs.known);
        }
        let blocks = |list: &Vec<Launch>| list.iter().map(|launch| launch.grid[0]).collect();
        graphs.known.iter().map(|(list, _)| blocks(list)).collect()
    }

    #[test]
    fn lists_are_told_apart_wherever_they_differ() {
        let lists: [&[u32]; 5] = [&[1, 2, 3], &[4, 2, 3], &[1, 4, 3], &[1, 2, 4], &[1, 2]];
        assert_eq!(known(&lists), lists);
        let again = [lists, lists].concat();
        assert_eq!(known(&again), lists);
    }

    #[test]
    fn the_list_that_was_not_met_for_longest_makes_room() {
        let lists = Vec::from_iter((1..=GRAPHS_MAX as u32).map(|n| [n]));
        let mut lists = Vec::from_iter(lists.iter().map(|list| &list[..]));
        lists.extend([&[1][..], &[65]]);
        let known = known(&lists);
        assert_eq!(known.len(), GRAPHS_MAX);
        assert_eq!([&known[0], &known[62], &known[63]], [&[3][..], &[1], &[65]]);
    }

    #[test]
    fn long_lists_are_not_kept() {
        let long = vec![1; LAUNCHES_MAX + 1];
        assert_eq!(known(&[&[7], &long, &long[1..]]), [&[7], &long[1..]]);
    }
}
