//! The command's memory: small pieces from mimalloc, large ones from the system.
//!
//! Each operation of a graph is made on one thread and taken apart on another, which is slow with glibc's allocator.
//! Large pieces stay with the system, because mimalloc keeps them longer than a conversion of large tensors can bear.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

use mimalloc::MiMalloc;

/// Bytes of a small piece, at most.
const SMALL: usize = 1 << 15;

/// The allocator of the command.
#[derive(Debug)]
pub struct Allocator;

fn of(layout: Layout) -> &'static dyn GlobalAlloc {
    if layout.size() <= SMALL { &MiMalloc } else { &System }
}

// SAFETY: a piece goes back to where it came from, because the size decides, and a piece that changes sides moves.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: what the caller vouches for.
        unsafe { of(layout).alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: what the caller vouches for.
        unsafe { of(layout).alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: what the caller vouches for.
        unsafe { of(layout).dealloc(piece, layout) }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller vouches for the piece and for the size; a moved piece holds the smaller of both sizes.
        unsafe {
            let new = Layout::from_size_align_unchecked(size, layout.align());
            if (layout.size() <= SMALL) == (size <= SMALL) {
                return of(layout).realloc(piece, layout, size);
            }
            let moved = self.alloc(new);
            if !moved.is_null() {
                ptr::copy_nonoverlapping(piece, moved, size.min(layout.size()));
                self.dealloc(piece, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_their_bytes_when_they_change_sides() {
        let sizes = [1, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL, SMALL + 1, SMALL, 7];
        let layout = |size| Layout::from_size_align(size, 16).expect("small enough");
        // SAFETY: layouts are those of the pieces, and bytes are read and written within their sizes.
        unsafe {
            let mut piece = Allocator.alloc_zeroed(layout(sizes[0]));
            assert_eq!(*piece, 0);
            *piece = 5;
            for pair in sizes.windows(2) {
                piece = Allocator.realloc(piece, layout(pair[0]), pair[1]);
                let kept = pair[0].min(pair[1]);
                let bytes = std::slice::from_raw_parts_mut(piece, kept);
                assert!(bytes.iter().enumerate().all(|(i, &b)| b == if i == 0 { 5 } else { 7 }), "{pair:?}");
                std::slice::from_raw_parts_mut(piece.add(kept), pair[1] - kept).fill(7);
                assert_eq!(piece.addr() % 16, 0);
            }
            Allocator.dealloc(piece, layout(7));
        }
    }
}
