//! Threads that share the work of one caller at a time. A kernel takes tens of microseconds, as long as a
//! sleeping thread takes to wake: so helpers look out for the next work for a while before they sleep, and a
//! caller that is done does not wait for helpers that have not begun.

use std::any::Any;
use std::hint::spin_loop;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// For how long a helper looks out for work before it sleeps.
const LOOK_OUT: Duration = Duration::from_micros(200);

/// What helpers do: they call it once each.
struct Job<'a> {
    work: &'a (dyn Fn() + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// The word between the caller and one helper: null, [`TAKEN`], [`QUIT`], or the job that is offered.
struct Desk {
    job: AtomicPtr<Job<'static>>,
    asleep: AtomicBool,
}

const TAKEN: *mut Job<'static> = ptr::without_provenance_mut(1);
const QUIT: *mut Job<'static> = ptr::without_provenance_mut(2);

struct Helper {
    desk: Arc<Desk>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

/// Helpers of whoever calls [`Helpers::join_in`].
pub(super) struct Helpers {
    all: Mutex<Vec<Helper>>,
    count: usize,
}

impl Helpers {
    /// Starts `count` threads, each of which calls `start` first.
    pub fn new(count: usize, start: fn()) -> io::Result<Self> {
        let started = (0..count).map(|i| Helper::new(i, start)).collect::<io::Result<_>>()?;
        Ok(Self { all: Mutex::new(started), count })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `work` on this thread, and at the same time on up to `count` helpers, unless they are busy
    /// with another caller. Panics of `work` come out here, after all calls have returned.
    pub fn join_in(&self, count: usize, work: &(dyn Fn() + Sync)) {
        let Some(helpers) = self.all.try_lock() else { return work() };
        let job = Job { work, panic: Mutex::new(None) };
        {
            let _until_done = Offer::new(&job, &helpers[..count.min(helpers.len())]);
            work();
        }
        if let Some(panic) = job.panic.into_inner() {
            resume_unwind(panic);
        }
    }
}

/// A job on the desks of helpers. Dropping it takes back what was not begun, and waits for the rest.
struct Offer<'a> {
    job: *mut Job<'static>,
    helpers: &'a [Helper],
}

impl<'a> Offer<'a> {
    fn new(job: &'a Job<'_>, helpers: &'a [Helper]) -> Self {
        let job = ptr::from_ref(job).cast_mut().cast();
        for helper in helpers {
            helper.offer(job);
        }
        Self { job, helpers }
    }
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        for Helper { desk, .. } in self.helpers {
            let back = desk.job.compare_exchange(self.job, null_mut(), Ordering::Acquire, Ordering::Acquire);
            if back.is_ok() {
                continue;
            }
            let mut looks = 0u32;
            while !desk.job.load(Ordering::Acquire).is_null() {
                looks += 1;
                // On a busy machine the helper may have lost its core.
                if looks.is_multiple_of(4096) { thread::yield_now() } else { spin_loop() }
            }
        }
    }
}

impl Helper {
    fn new(number: usize, start: fn()) -> io::Result<Self> {
        let desk = Arc::new(Desk { job: AtomicPtr::new(null_mut()), asleep: AtomicBool::new(false) });
        let of_thread = desk.clone();
        let run = move || {
            start();
            of_thread.serve();
        };
        let handle = thread::Builder::new().name(format!("mlxport-kernel-{number}")).spawn(run)?;
        Ok(Self { desk, thread: handle.thread().clone(), handle: Some(handle) })
    }

    fn offer(&self, job: *mut Job<'static>) {
        self.desk.job.store(job, Ordering::SeqCst);
        if self.desk.asleep.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.offer(QUIT);
        if let Some(handle) = self.handle.take() {
            // The thread catches what panics.
            let _ = handle.join();
        }
    }
}

impl Desk {
    /// Does what is offered, until it is to quit.
    fn serve(&self) {
        loop {
            let job = self.next();
            if job == QUIT {
                return;
            }
            let taken = self.job.compare_exchange(job, TAKEN, Ordering::AcqRel, Ordering::Acquire);
            if taken.is_err() {
                continue;
            }
            // SAFETY: the offer was taken, so its caller keeps the job alive until the desk is empty again.
            let job = unsafe { &*job };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(job.work)) {
                job.panic.lock().get_or_insert(panic);
            }
            self.job.store(null_mut(), Ordering::Release);
        }
    }

    /// Waits for something on the desk.
    fn next(&self) -> *mut Job<'static> {
        let mut since = Instant::now();
        let mut looks = 0u32;
        loop {
            let job = self.job.load(Ordering::SeqCst);
            if !job.is_null() {
                return job;
            }
            looks += 1;
            if !looks.is_multiple_of(64) || since.elapsed() < LOOK_OUT {
                spin_loop();
                continue;
            }
            self.asleep.store(true, Ordering::SeqCst);
            // An offer before this is seen here; one after it wakes the thread.
            if self.job.load(Ordering::SeqCst).is_null() {
                thread::park();
            }
            self.asleep.store(false, Ordering::SeqCst);
            since = Instant::now();
        }
    }
}
