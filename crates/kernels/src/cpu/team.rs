//! One persistent team of threads. The caller is a member: it works as lane 0 and the others as the lanes after it.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, available_parallelism};

/// How often a lane looks at a counter before it lets others have the processor, with a pause each time. A pause is a few to
/// well over a hundred cycles, whichever the processor makes of it, so all of them are a few to some tens of microseconds.
const SPINS: u32 = 1500;
/// Rounds of yielding with which a worker waits for its next job before it sleeps.
const YIELDS: u32 = 64;

type Job<'a> = dyn Fn(&Member<'_>) + Sync + 'a;

pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: programs that share a team take turns.
    turn: Mutex<()>,
}

struct Shared {
    lanes: usize,
    spins: u32,
    /// Jobs handed out so far.
    epoch: AtomicUsize,
    /// Written by the caller before it moves `epoch` on, read by the workers after they saw it move.
    job: UnsafeCell<Option<&'static Job<'static>>>,
    finished: AtomicUsize,
    stop: AtomicBool,
    asleep: AtomicUsize,
    door: Mutex<()>,
    wake: Condvar,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    poisoned: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the only part that is not Sync; the caller writes it while no worker has a job, and `epoch` orders
// that write before the workers' reads.
unsafe impl Sync for Shared {}
// SAFETY: the job is `Sync`, so a reference to it may go to another thread.
unsafe impl Send for Shared {}

/// A lane's place in the team while a job runs.
pub(crate) struct Member<'a> {
    pub id: usize,
    pub of: usize,
    shared: &'a Shared,
}

/// What a lane unwinds with when another lane has panicked: it has nothing to report itself.
struct OtherLanePanicked;

impl Team {
    /// Starts `lanes - 1` threads. They end when the team is dropped.
    pub fn start(lanes: usize) -> std::io::Result<Team> {
        let cores = available_parallelism().map_or(1, |n| n.get());
        let shared = Arc::new(Shared {
            lanes,
            // With more lanes than cores the lane that is waited for may need the core of the one that waits.
            spins: if lanes <= cores { SPINS } else { 0 },
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            finished: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            door: Mutex::new(()),
            wake: Condvar::new(),
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        // Made first, so that the threads already started end if a later one cannot be had.
        let mut team = Team { shared, workers: Vec::with_capacity(lanes), turn: Mutex::new(()) };
        for id in 1..lanes {
            let shared = team.shared.clone();
            let thread = Builder::new().name(format!("cpu lane {id}"));
            team.workers.push(thread.spawn(move || work(&shared, id))?);
        }
        Ok(team)
    }

    pub fn lanes(&self) -> usize {
        self.shared.lanes
    }

    /// Runs `job` on every lane and returns when all have finished. If a lane panics, so does this call.
    pub fn run(&self, job: &Job) {
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Every worker is done with the job before this call returns, and no
        // panic of lane 0 leaves it early, because `run_lane` catches them.
        let job = unsafe { std::mem::transmute::<&Job, &'static Job<'static>>(job) };
        shared.finished.store(0, Ordering::Relaxed);
        // SAFETY: all workers wait for the next epoch, none reads the job now.
        unsafe { *shared.job.get() = Some(job) };
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        // A worker counts itself asleep before it looks at the epoch for the last time; one of the two sees the other.
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            let _door = lock(&shared.door);
            shared.wake.notify_all();
        }
        shared.run_lane(0, job);
        shared.wait(|| shared.finished.load(Ordering::Acquire) == shared.lanes - 1);
        if shared.poisoned.load(Ordering::Acquire) {
            shared.arrived.store(0, Ordering::Relaxed);
            shared.poisoned.store(false, Ordering::Release);
            let payload = lock(&shared.panic).take();
            drop(turn);
            resume_unwind(payload.unwrap_or_else(|| Box::new("a lane panicked")));
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        drop(lock(&self.shared.door));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs, so there is nothing to report.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn run_lane(&self, id: usize, job: &Job) {
        let member = Member { id, of: self.lanes, shared: self };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(&member))) {
            if !payload.is::<OtherLanePanicked>() {
                lock(&self.panic).get_or_insert(payload);
            }
            self.poisoned.store(true, Ordering::Release);
        }
    }

    fn wait(&self, done: impl Fn() -> bool) {
        let mut spins = 0;
        while !done() {
            if spins < self.spins {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Waits for an epoch other than `seen` and returns it.
    fn next_epoch(&self, seen: usize) -> usize {
        for attempt in 0..self.spins + YIELDS {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            match attempt < self.spins {
                true => std::hint::spin_loop(),
                false => std::thread::yield_now(),
            }
        }
        let mut door = lock(&self.door);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        while self.epoch.load(Ordering::SeqCst) == seen {
            door = self.wake.wait(door).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        self.epoch.load(Ordering::Acquire)
    }
}

fn work(shared: &Shared, id: usize) {
    let mut seen = 0;
    loop {
        seen = shared.next_epoch(seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the epoch moved after the job was written, and the next is written only after this lane finished.
        if let Some(job) = unsafe { *shared.job.get() } {
            shared.run_lane(id, job);
        }
        shared.finished.fetch_add(1, Ordering::Release);
    }
}

impl Member<'_> {
    /// Waits until every lane has come here. What any lane wrote before, all see after.
    pub fn barrier(&self) {
        let shared = self.shared;
        if shared.lanes == 1 {
            return;
        }
        let generation = shared.generation.load(Ordering::Acquire);
        if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == shared.lanes {
            shared.arrived.store(0, Ordering::Relaxed);
            shared.generation.store(generation.wrapping_add(1), Ordering::Release);
            return;
        }
        shared.wait(|| {
            shared.generation.load(Ordering::Acquire) != generation || shared.poisoned.load(Ordering::Acquire)
        });
        if shared.generation.load(Ordering::Acquire) == generation {
            resume_unwind(Box::new(OtherLanePanicked));
        }
    }
}

/// A panic while one of these locks is held leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barriers_separate_stages() {
        let team = Team::start(5).unwrap();
        let counts: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..20 {
            team.run(&|member| {
                for count in &counts {
                    let before = count.fetch_add(1, Ordering::Relaxed);
                    member.barrier();
                    let after = count.load(Ordering::Relaxed);
                    assert!(after.is_multiple_of(5) && after > before, "{before} {after}");
                    member.barrier();
                }
            });
        }
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 100));
    }

    #[test]
    fn a_panic_in_a_lane_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::start(3).unwrap();
        for bad in 0..3 {
            let run = || {
                team.run(&|member| {
                    member.barrier();
                    if member.id == bad {
                        std::panic::panic_any(format!("lane {bad}"));
                    }
                    member.barrier();
                    member.barrier();
                });
            };
            let payload = catch_unwind(AssertUnwindSafe(run)).expect_err("the panic comes through");
            assert_eq!(payload.downcast_ref::<String>(), Some(&format!("lane {bad}")));
            let ran = AtomicUsize::new(0);
            team.run(&|member| {
                member.barrier();
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.into_inner(), 3);
        }
    }

    #[test]
    fn sleeping_workers_wake_and_dropping_joins_them() {
        let team = Team::start(4).unwrap();
        let shared = Arc::downgrade(&team.shared);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let lanes = AtomicUsize::new(0);
            team.run(&|member| {
                lanes.fetch_or(1 << member.id, Ordering::Relaxed);
            });
            assert_eq!(lanes.into_inner(), 0b1111);
        }
        drop(team);
        assert_eq!(shared.strong_count(), 0, "a thread still holds the team");
    }
}
