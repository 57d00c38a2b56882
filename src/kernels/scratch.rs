//! Memory that kernels work in. Pages of a large allocation come from the system one by one and go back when it is freed, which
//! takes longer than some kernels do: so a few large buffers are kept.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers from which on a buffer is kept.
const LARGE: usize = 1 << 14;
/// Numbers that are kept in all: 32 MiB.
const KEPT: usize = 8 << 20;

static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

fn free() -> MutexGuard<'static, Vec<Vec<f32>>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A buffer of `count` numbers.
pub(crate) struct Scratch {
    buffer: Vec<f32>,
    count: usize,
}

/// So many numbers, of any value.
pub(crate) fn take(count: usize) -> Scratch {
    let smallest = |free: &mut Vec<Vec<f32>>| {
        let fits = free.iter().enumerate().filter(|(_, kept)| kept.len() >= count);
        let at = fits.min_by_key(|(_, kept)| kept.len()).map(|(at, _)| at);
        at.map(|at| free.swap_remove(at))
    };
    let kept = if count < LARGE { None } else { smallest(&mut free()) };
    let buffer = kept.unwrap_or_else(|| {
        // Written, not zeros as the system gives them: to read of such a page first makes it cost twice.
        let mut buffer = Vec::with_capacity(count);
        buffer.resize(count, 0.0);
        buffer
    });
    Scratch { buffer, count }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < LARGE {
            return;
        }
        let mut free = free();
        if free.iter().map(Vec::len).sum::<usize>() + buffer.len() <= KEPT {
            free.push(buffer);
        }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[..self.count]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since what is kept is the process's.
    #[test]
    fn large_buffers_are_kept_up_to_a_limit() {
        let kept = || free().iter().map(Vec::len).collect::<Vec<_>>();
        drop(take(LARGE - 1));
        assert!(kept().iter().all(|&len| len >= LARGE), "a small buffer was kept: {:?}", kept());
        let mut all: Vec<Scratch> = (1..=5).map(|i| take(KEPT / 4 + i)).collect();
        for (i, buffer) in all.iter_mut().enumerate() {
            assert_eq!(buffer.len(), KEPT / 4 + 1 + i);
            buffer.fill(i as f32);
        }
        assert!(all.iter().enumerate().all(|(i, buffer)| buffer.iter().all(|&x| x == i as f32)));
        drop(all);
        assert!((1..=KEPT).contains(&kept().iter().sum()), "{:?}", kept());
        // The smallest that fits, at its own length.
        let least = kept().into_iter().min().expect("some are kept");
        let again = take(least - 1);
        assert_eq!((again.len(), kept().contains(&least)), (least - 1, false));
    }
}
