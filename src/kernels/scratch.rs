//! Memory that kernels work in. Pages of a large allocation come from the system one by one and go back when it is freed, which
//! takes longer than some kernels do: so a few large buffers are kept.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers from which on a buffer is kept.
const LARGE: usize = 1 << 14;
/// Numbers that are kept in all: 32 MiB.
const KEPT: usize = 8 << 20;

/// Buffers that nobody uses.
struct Free(Mutex<Vec<Vec<f32>>>);

static FREE: Free = Free::new();

/// A buffer of `count` numbers.
pub(crate) struct Scratch {
    buffer: Vec<f32>,
    count: usize,
    from: &'static Free,
}

/// So many numbers, of any value.
pub(crate) fn take(count: usize) -> Scratch {
    FREE.take(count)
}

impl Free {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn all(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The smallest that fits, or a new one.
    fn take(&'static self, count: usize) -> Scratch {
        let smallest = |all: &mut Vec<Vec<f32>>| {
            let fits = all.iter().enumerate().filter(|(_, kept)| kept.len() >= count);
            let at = fits.min_by_key(|(_, kept)| kept.len()).map(|(at, _)| at);
            at.map(|at| all.swap_remove(at))
        };
        let kept = if count < LARGE { None } else { smallest(&mut self.all()) };
        let buffer = kept.unwrap_or_else(|| {
            // Written, not zeros as the system gives them: to read of such a page first makes it cost twice.
            let mut buffer = Vec::with_capacity(count);
            buffer.resize(count, 0.0);
            buffer
        });
        Scratch { buffer, count, from: self }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < LARGE {
            return;
        }
        let mut all = self.from.all();
        if all.iter().map(Vec::len).sum::<usize>() + buffer.len() <= KEPT {
            all.push(buffer);
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

    #[test]
    fn large_buffers_are_kept_up_to_a_limit() {
        static FREE: Free = Free::new();
        let kept = || FREE.all().iter().map(Vec::len).collect::<Vec<_>>();
        drop(FREE.take(LARGE - 1));
        assert!(kept().is_empty());
        let mut all: Vec<Scratch> = (1..=5).map(|i| FREE.take(KEPT / 4 - i)).collect();
        for (i, buffer) in all.iter_mut().enumerate() {
            assert_eq!(buffer.len(), KEPT / 4 - 1 - i);
            buffer.fill(i as f32);
        }
        assert!(all.iter().enumerate().all(|(i, buffer)| buffer.iter().all(|&x| x == i as f32)));
        drop(all);
        assert_eq!(kept(), [1, 2, 3, 4].map(|i| KEPT / 4 - i));
        let again = FREE.take(LARGE);
        assert_eq!((again.len(), kept().contains(&(KEPT / 4 - 4))), (LARGE, false));
    }
}
