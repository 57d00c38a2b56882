//! What the process was told of signals by whoever started it.

use std::ffi::c_int;

/// The handler of a signal that is ignored.
const IGNORE: usize = 1;

unsafe extern "C" {
    fn signal(number: c_int, handler: usize) -> usize;
}

/// Whether the process ignores this signal, as what `nohup` starts ignores its hang-up. It does from now on.
pub(crate) fn ignores(number: c_int) -> bool {
    // SAFETY: no handler is called for a signal that is ignored; a wrong number is refused.
    unsafe { signal(number, IGNORE) == IGNORE }
}
