//! Products of matrices in `float32`, whatever the operands are stored as.
//!
//! Both operands are copied into panels that lie in the order in which they are read, so it does not
//! matter how they lie in memory; a weight is decoded there, once for all rows that meet it. Each sum runs
//! over `k` in one fixed order. (Goto and van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication", 2008.)

pub(crate) mod cpu;
mod dense;
mod gather;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod sums;

#[cfg(target_arch = "x86_64")]
pub(crate) use cpu::bf16::{DEPTH as PAIRS, ROWS, join_pairs, multiply as multiply_pairs};
pub(crate) use cpu::shared::strips;
pub(crate) use cpu::{PANEL, SLIVER, tile};
pub(crate) use dense::{Dense, Numbers, Picked, number};
pub(crate) use gather::{Pick, batch_origins, picks};
#[cfg(target_arch = "x86_64")]
pub(crate) use pairs::Pairs;
pub(crate) use sums::{Sums, to_bf16, to_f16};

use super::path::Path;
use super::pool;

/// A matrix as lines that are read as `float32`.
pub(crate) trait Lines: Sync {
    /// Elements `start..start + out.len()` of a line; both are multiples of 16, or end with the line.
    fn read(&self, line: usize, start: usize, out: &mut [f32]);

    /// Of how many `bfloat16` each number is the sum, as closely as the result needs it.
    fn parts(&self) -> usize {
        3
    }
}

/// One side of a product: `count` vectors of length `k`.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub lines: &'a dyn Lines,
    pub count: usize,
    /// Whether a line holds one element of every vector, rather than one vector.
    pub across: bool,
}

/// Multiply-adds that are worth another thread.
const WORK: usize = 1 << 18;
/// How much of `k` is packed at a time.
const DEPTH: usize = 256;
/// Vectors of the smaller side that share one pass over the larger.
const BLOCK: usize = 512;
/// Vectors of the smaller side whose panels stay in a core's cache.
const NEAR: usize = 16 * PANEL;
/// Vectors of the larger side that a thread takes at a time.
const STRIP: usize = 128;

/// `a @ b.T`, where `a` has a vector for each row of the result and `b` one for each column. `store` takes
/// the result, part by part.
pub(crate) fn product(path: Path, a: Side<'_>, b: Side<'_>, k: usize, store: &mut dyn FnMut(&Sums)) {
    let turned = a.count > b.count;
    let (few, many) = if turned { (b, a) } else { (a, b) };
    // Of more parts there would be more products than `float32` needs.
    let parts = [few, many].map(|side| side.lines.parts());
    let path = match (path, parts) {
        (Path::Avx512Bf16, [1, 1]) => path,
        (Path::Amx, [..=2, ..=2]) => path,
        _ => path.min(Path::Avx512),
    };
    let width = strip_width(many.count).max(if path == Path::Amx { 32 } else { SLIVER });
    for first in (0..few.count).step_by(BLOCK) {
        let vectors = first..few.count.min(first + BLOCK);
        let mut values = block(path, few, vectors.clone(), many, k, width);
        // An infinity may have met a zero that is but a part of a number.
        if path == Path::Amx && parts != [1, 1] && values.iter().any(|value| !value.is_finite()) {
            let again = block(Path::Avx512, few, vectors.clone(), many, k, width);
            let wrong = values.iter_mut().zip(again).filter(|(value, _)| !value.is_finite());
            wrong.for_each(|(value, again)| *value = again);
        }
        store(&Sums { values, width, few: vectors, many: many.count, turned });
    }
}

/// The products of vectors of the smaller side with all of the larger, `[many / width, few, width]`.
fn block(
    path: Path,
    few: Side<'_>,
    vectors: std::ops::Range<usize>,
    many: Side<'_>,
    k: usize,
    width: usize,
) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    match path {
        Path::Amx => return cpu::amx::block(few, vectors, many, k, width),
        Path::Avx512Bf16 => {
            if let Some(values) = pairs::block(few, vectors.clone(), many, k, width) {
                return values;
            }
        }
        _ => {}
    }
    let count = vectors.len();
    let panels = pack_panels(few, vectors.start, count, k);
    in_strips(path, many, k, DEPTH, [count, width], |start, depth, slivers, sums| {
        multiply(path, &panels[start * count.next_multiple_of(PANEL)..], slivers, depth, count, sums);
    })
}

/// `[n / width, count, width]`, to which `add` adds products with slivers of some vectors: from where in `k` on, how much of it,
/// the slivers, and the part of the result.
fn in_strips(
    path: Path,
    many: Side<'_>,
    k: usize,
    deepest: usize,
    [count, width]: [usize; 2],
    add: impl Fn(usize, usize, &[f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut values = vec![0.0f32; many.count.div_ceil(width) * count * width];
    pool::for_each_piece(&mut values, count * width, |strip, sums| {
        let start = strip * width;
        let filled = width.min(many.count - start);
        let mut slivers = vec![0.0; width * deepest.min(k)];
        let mut lines = vec![0.0; (SLIVER * deepest).max(width)];
        for k_start in (0..k).step_by(deepest) {
            let depth = deepest.min(k - k_start);
            pack_slivers(path, many, start..start + filled, k_start, depth, &mut lines, &mut slivers);
            add(k_start, depth, &slivers[..filled.next_multiple_of(SLIVER) * depth], sums);
        }
    });
    values
}

/// The widest strip that leaves every thread some of `many` vectors. Results do not depend on it.
fn strip_width(many: usize) -> usize {
    let mut width = STRIP;
    while width > SLIVER && many.div_ceil(width) < 4 * pool::threads() {
        width /= 2;
    }
    width
}

/// `[k / DEPTH, count / PANEL, DEPTH, PANEL]`, with zeros beyond `count`.
fn pack_panels(side: Side<'_>, first: usize, count: usize, k: usize) -> Vec<f32> {
    let padded = count.next_multiple_of(PANEL);
    let mut packed = vec![0.0f32; padded * k];
    pool::for_each_piece(&mut packed, padded * DEPTH, |block, out| {
        let (start, depth) = (block * DEPTH, out.len() / padded);
        let mut line = [0.0f32; BLOCK];
        if side.across {
            for i in 0..depth {
                side.lines.read(start + i, first, &mut line[..count]);
                for (panel, values) in out.chunks_exact_mut(depth * PANEL).zip(line[..count].chunks(PANEL)) {
                    panel[i * PANEL..][..values.len()].copy_from_slice(values);
                }
            }
            return;
        }
        for v in 0..count {
            side.lines.read(first + v, start, &mut line[..depth]);
            let panel = &mut out[v / PANEL * depth * PANEL..][..depth * PANEL];
            for (out, value) in panel.chunks_exact_mut(PANEL).zip(&line) {
                out[v % PANEL] = *value;
            }
        }
    });
    packed
}

/// `[range / SLIVER, depth, SLIVER]`, with zeros beyond the range.
pub(crate) fn pack_slivers(
    path: Path,
    side: Side<'_>,
    range: std::ops::Range<usize>,
    start: usize,
    depth: usize,
    lines: &mut [f32],
    out: &mut [f32],
) {
    let slivers = out.chunks_exact_mut(depth * SLIVER).take(range.len().div_ceil(SLIVER));
    if side.across {
        let mut slivers: Vec<&mut [f32]> = slivers.collect();
        let line = &mut lines[..slivers.len() * SLIVER];
        line[range.len()..].fill(0.0);
        for i in 0..depth {
            side.lines.read(start + i, range.start, &mut line[..range.len()]);
            for (sliver, values) in slivers.iter_mut().zip(line.chunks_exact(SLIVER)) {
                sliver[i * SLIVER..][..SLIVER].copy_from_slice(values);
            }
        }
        return;
    }
    for (sliver, first) in slivers.zip(range.clone().step_by(SLIVER)) {
        let count = SLIVER.min(range.end - first);
        for (v, line) in lines.chunks_exact_mut(depth).take(SLIVER).enumerate() {
            if v < count {
                side.lines.read(first + v, start, line);
            } else {
                line.fill(0.0);
            }
        }
        cpu::interleave(path, &lines[..SLIVER * depth], sliver);
    }
}

/// Adds the product of panels and slivers to `sums`, `[count, width]`.
fn multiply(path: Path, panels: &[f32], slivers: &[f32], depth: usize, count: usize, sums: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if path >= Path::Avx512 {
        return cpu::avx512::multiply(panels, slivers, depth, count, sums);
    }
    let width = sums.len() / count;
    for near in (0..count).step_by(NEAR) {
        for (s, sliver) in slivers.chunks_exact(depth * SLIVER).enumerate() {
            for row in (near..count.min(near + NEAR)).step_by(PANEL) {
                let panel = &panels[row * depth..][..depth * PANEL];
                let rows = PANEL.min(count - row);
                cpu::tile(path, panel, sliver, rows, &mut sums[row * width + s * SLIVER..], width);
            }
        }
    }
}
