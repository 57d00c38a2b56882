//! Two threads that take turns.

pub fn threads() -> usize {
    2
}

pub fn for_each_piece<T: Send>(out: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    std::thread::scope(|scope| {
        for (i, piece) in out.chunks_mut(size).enumerate() {
            let work = &work;
            if i % 2 == 1 {
                scope.spawn(move || work(i, piece));
            } else {
                work(i, piece);
            }
        }
    });
}

/// As the product's, which takes the next of `all` before it works on one.
pub fn for_each_ahead<T: Send>(all: &mut [T], prepare: impl Fn(&T) + Sync, work: impl Fn(&mut T) + Sync) {
    for i in 0..all.len() {
        if let Some(next) = all.get(i + 1) {
            prepare(next);
        }
        work(&mut all[i]);
    }
}
