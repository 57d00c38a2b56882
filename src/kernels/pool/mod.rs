//! The threads that kernels share. One caller has them at a time; another one meanwhile works alone.

#[allow(unsafe_code)]
mod cpu;

use std::sync::{Arc, LazyLock};

use parking_lot::{Mutex, RwLock};

use crate::error::{Error, Result};

/// One thread less than work is spread over: the calling thread takes its share. `None` where that
/// leaves no other.
type Helpers = Option<Arc<cpu::Helpers>>;

static HELPERS: LazyLock<RwLock<Helpers>> = LazyLock::new(|| {
    let machine = std::thread::available_parallelism().map_or(1, usize::from);
    // Without helpers kernels still work.
    RwLock::new(helpers(machine).unwrap_or(None))
});

fn helpers(threads: usize) -> Result<Helpers> {
    if threads < 2 {
        return Ok(None);
    }
    let helpers = cpu::Helpers::new(threads - 1, crate::ffi::bar_from_arrays);
    helpers.map(|all| Some(Arc::new(all))).map_err(|e| Error::unsupported("threads", e.to_string()))
}

/// On how many threads the kernels of this process run: at first as many as the machine has cores.
pub fn threads() -> usize {
    HELPERS.read().as_ref().map_or(1, |helpers| helpers.count() + 1)
}

/// Sets on how many threads the kernels of this process run. Results do not depend on it. Fails for 0,
/// and if the threads cannot be started.
pub fn set_threads(threads: usize) -> Result<()> {
    if threads == 0 {
        return Err(Error::argument("set_threads", "no threads"));
    }
    let next = helpers(threads)?;
    *HELPERS.write() = next;
    Ok(())
}

/// How much of `total` a thread takes at a time, of which `least` is worth another thread: more of more, so that what it works on
/// lies together, and several times each thread's share.
pub(crate) fn share(total: usize, least: usize) -> usize {
    (total / (8 * threads())).clamp(least, 16 * least)
}

/// Calls `work` with each piece of `out`, of `size` elements but the last, and its number; in any order
/// and on any thread. What is one piece stays on this thread.
pub(crate) fn for_each_piece<T: Send>(out: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let pieces = out.len().div_ceil(size);
    let rest = Mutex::new(out.chunks_mut(size).enumerate());
    let take_pieces = || {
        loop {
            let Some((i, piece)) = rest.lock().next() else { return };
            work(i, piece);
        }
    };
    on_all_threads(pieces, take_pieces);
}

/// Calls `work` with each of `all`, in any order and on any thread, which takes the next before it works on one: that goes to
/// `prepare` first.
pub(crate) fn for_each_ahead<T: Send>(
    all: &mut [T],
    prepare: impl Fn(&T) + Sync,
    work: impl Fn(&mut T) + Sync,
) {
    let count = all.len();
    let rest = Mutex::new(all.iter_mut());
    let take_all = || {
        let mut next = rest.lock().next();
        while let Some(one) = next {
            next = rest.lock().next();
            if let Some(next) = &next {
                prepare(next);
            }
            work(one);
        }
    };
    on_all_threads(count, take_all);
}

/// Calls `take_pieces`, which takes those that nobody has taken yet, on as many threads as there are pieces, at most.
fn on_all_threads(pieces: usize, take_pieces: impl Fn() + Sync) {
    let helpers = if pieces > 1 { HELPERS.read().clone() } else { None };
    match helpers {
        None => take_pieces(),
        Some(helpers) => helpers.join_in(pieces - 1, &take_pieces),
    }
}

/// As [`for_each_piece`], with the pieces of two outputs of equal length together.
pub(crate) fn for_each_piece_of_two<T: Send>(
    a: &mut [T],
    b: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) {
    let mut both: Vec<_> = a.chunks_mut(size).zip(b.chunks_mut(size)).collect();
    for_each_piece(&mut both, 1, |i, both| {
        for (a, b) in both {
            work(i, a, b);
        }
    });
}
