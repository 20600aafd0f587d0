//! Fork-join threads for loops of microseconds.
//!
//! A decode step runs some hundred parallel loops of 5 to 200 µs. Workers therefore spin for a
//! while between loops before they sleep, and items are claimed one by one, so that a worker that
//! is late (or descheduled) delays nobody: the caller takes its share.

use std::any::Any;
use std::cell::UnsafeCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// About 100 µs of `spin_loop` hints before a worker sleeps.
const SPINS: u32 = 2_000;

/// `task(worker, item)`; worker 0 is the caller.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct Shared {
    /// Loop number in the high half, items left to claim in the low half. One word, so that an item
    /// can be claimed only of the loop that the claimer saw.
    ticket: AtomicU64,
    /// Items of the current loop that are not finished.
    unfinished: AtomicUsize,
    /// The current loop's task and its number of items. Written by the caller while no item is
    /// unfinished; read only by those who hold an unfinished item.
    task: UnsafeCell<(*const Task<'static>, usize)>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    /// Workers that are up.
    started: AtomicUsize,
    sleeping: Vec<AtomicBool>,
}

// SAFETY: `task` is the only field that is not Sync; the protocol above orders its uses: the caller's
// write happens before the release store of `ticket`, which a claim acquires, and the next write comes
// after `unfinished` has been seen as 0 (acquire), which every finish releases.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `task` is dereferenced only while the caller waits inside `run`.
unsafe impl Send for Shared {}

impl Shared {
    /// Claims one item and runs it; false when nothing is left.
    fn run_one(&self, worker: usize) -> bool {
        let mut ticket = self.ticket.load(Ordering::Acquire);
        loop {
            if ticket as u32 == 0 {
                return false;
            }
            match self.ticket.compare_exchange_weak(ticket, ticket - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => ticket = now,
            }
        }
        // SAFETY: we hold an unfinished item of this loop, so the caller is inside `run` and the
        // task is alive and not being written.
        let (task, items) = unsafe { *self.task.get() };
        let item = items - ticket as u32 as usize;
        // SAFETY: as above.
        let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*task)(worker, item) }));
        if let Err(panic) = outcome {
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
        self.unfinished.fetch_sub(1, Ordering::AcqRel);
        true
    }

    fn work(&self, worker: usize) {
        self.started.fetch_add(1, Ordering::Release);
        let mut idle = 0;
        while !self.stop.load(Ordering::Acquire) {
            if self.run_one(worker) {
                idle = 0;
            } else if idle < SPINS {
                idle += 1;
                std::hint::spin_loop();
            } else {
                let sleeping = &self.sleeping[worker - 1];
                sleeping.store(true, Ordering::SeqCst);
                // The caller publishes work first and looks at `sleeping` then; so look once more.
                if self.ticket.load(Ordering::SeqCst) as u32 == 0 && !self.stop.load(Ordering::SeqCst) {
                    thread::park();
                }
                sleeping.store(false, Ordering::SeqCst);
                idle = 0;
            }
        }
    }
}

/// A caller and `threads - 1` workers.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

impl Pool {
    pub(super) fn new(threads: usize) -> Self {
        Self::spawned_by(threads, |worker, work| {
            thread::Builder::new().name(format!("strait-cpu-{worker}")).spawn(work)
        })
    }

    fn spawned_by(
        threads: usize,
        mut spawn: impl FnMut(usize, Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>,
    ) -> Self {
        let nothing: &'static Task<'static> = &|_, _| {};
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            unfinished: AtomicUsize::new(0),
            task: UnsafeCell::new((nothing, 0)),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            started: AtomicUsize::new(0),
            sleeping: (1..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let workers: Vec<_> = (1..threads)
            // Fewer threads than asked for are slower, not wrong; but their numbers must have no gap.
            .map_while(|worker| {
                let shared = shared.clone();
                let handle = spawn(worker, Box::new(move || shared.work(worker))).ok()?;
                Some((handle.thread().clone(), Some(handle)))
            })
            .collect();
        // A thread allocates when it starts, and a step must not.
        while shared.started.load(Ordering::Acquire) < workers.len() {
            thread::yield_now();
        }
        Self { shared, workers }
    }

    /// Upper bound of the `worker` argument that tasks see, plus one.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(worker, item)` for each item below `items`, in any order, on any thread; returns
    /// when all are done. No two calls at a time have the same worker.
    pub(super) fn run(&mut self, items: usize, task: &Task<'_>) {
        if items <= 1 || self.workers.is_empty() {
            (0..items).for_each(|item| task(0, item));
            return;
        }
        assert!(items <= u32::MAX as usize);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. `&mut self` keeps other loops out, all items of the last
        // one are finished, and this function does not return before all of this one's are.
        unsafe {
            *shared.task.get() = (std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task), items)
        };
        shared.unfinished.store(items, Ordering::Release);
        let round = (shared.ticket.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.ticket.store(round << 32 | items as u64, Ordering::SeqCst);
        for ((thread, _), sleeping) in self.workers.iter().zip(&shared.sleeping).take(items - 1) {
            if sleeping.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        while shared.run_one(0) {}
        let mut spins = 0u32;
        while shared.unfinished.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins.is_multiple_of(SPINS) {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                // A worker's panic was handed to the caller when it happened.
                let _ = handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    #[test]
    fn every_item_runs_once() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads);
            for items in [0, 1, 2, 3, 64, 1000] {
                for _ in 0..50 {
                    let counts: Vec<AtomicU32> = (0..items).map(|_| AtomicU32::new(0)).collect();
                    pool.run(items, &|worker, item| {
                        assert!(worker < threads);
                        counts[item].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn workers_are_numbered_without_a_gap() {
        let mut pool = Pool::spawned_by(4, |worker, work| match worker {
            2 => Err(io::Error::other("no more threads")),
            _ => thread::Builder::new().spawn(work),
        });
        let threads = pool.threads();
        for _ in 0..200 {
            pool.run(64, &|worker, _| {
                assert!(worker < threads);
                thread::yield_now();
            });
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        let mut pool = Pool::new(3);
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(5));
            let sum = AtomicU32::new(0);
            pool.run(100, &|_, item| _ = sum.fetch_add(item as u32, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(2);
        let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|_, item| assert!(item != 3))));
        assert!(outcome.is_err());
        let done = AtomicU32::new(0);
        pool.run(8, &|_, _| _ = done.fetch_add(1, Ordering::Relaxed));
        assert_eq!(done.into_inner(), 8);
    }
}
