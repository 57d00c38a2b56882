//! Tiles of AMX, which multiply `bfloat16` and add in `float32`.
//!
//! A tile of 16 rows of the one side meets one of 16 vectors of the other, 32 elements of each at a time. A
//! number that is no `bfloat16` is the sum of two: its upper half, which is exact, and what that leaves,
//! rounded; every part meets every part. So products of `bfloat16` and `float16` are exact, and of other
//! numbers 16 bits count. The instruction takes denormal numbers for zero: vectors that are small throughout
//! are scaled by a power of two while they are packed.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::LazyLock;

use crate::kernels::pool;
use crate::kernels::product::Side;

/// Rows of a tile, and vectors that it holds.
const TILE: usize = 16;
/// Elements of each vector in a tile.
const STEP: usize = 32;
/// Elements in a tile.
const SIZE: usize = TILE * STEP;
/// How much of `k` is packed at a time; a multiple of `STEP`.
const DEPTH: usize = 512;

/// Whether the CPU has AMX-BF16, and the system lets this process use it.
pub fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| has_amx() && permitted());
    *AVAILABLE
}

fn has_amx() -> bool {
    if !is_x86_feature_detected!("xsave") || __cpuid(0).eax < 7 {
        return false;
    }
    let (bf16, tiles) = (1 << 22, 1 << 24);
    let enabled_by_system = {
        let (low, _high): (u32, u32);
        // SAFETY: the CPU has XSAVE, and the system has turned it on.
        unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _high, options(nomem, nostack)) };
        low & (3 << 17) == 3 << 17
    };
    __cpuid_count(7, 0).edx & (bf16 | tiles) == bf16 | tiles && enabled_by_system
}

/// Asks Linux for the state of the tiles, which it gives to all threads of a process that asks; to others the
/// instructions are illegal.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that touches no memory of this process.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Elsewhere nobody has tried.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

static CONFIGURATION: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = TILE as u8;
        tile += 1;
    }
    Configuration(bytes)
};

/// The tiles of this thread, while it lives.
struct Tiles(());

impl Tiles {
    fn new() -> Self {
        assert!(available());
        // SAFETY: the CPU has AMX and the process may use it; the instruction reads 64 bytes.
        unsafe {
            asm!("ldtilecfg [{0}]", in(reg) CONFIGURATION.0.as_ptr(), options(readonly, nostack));
        }
        Self(())
    }

    /// The sums of `first` and the tiles `TILE` vectors further, by those of `second`, over `steps` tiles:
    /// `[first, second, 16, 16]`. Each pair of places is one of parts to multiply.
    fn products(
        &self,
        pairs: impl Iterator<Item = [[*const u16; 2]; 2]>,
        steps: usize,
        out: &mut [[f32; TILE * TILE]; 4],
    ) {
        // SAFETY: tiles 0 to 7 are configured and used nowhere else; the caller gives places with `steps`
        // tiles each, and `out` has room for four.
        unsafe {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack));
            for [[a0, a1], [b0, b1]] in pairs {
                asm!(
                    "2:",
                    "tileloadd tmm4, [{a0} + {line}]",
                    "tileloadd tmm6, [{b0} + {line}]",
                    "tileloadd tmm5, [{a1} + {line}]",
                    "tileloadd tmm7, [{b1} + {line}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a0}, {size}",
                    "add {a1}, {size}",
                    "add {b0}, {size}",
                    "add {b1}, {size}",
                    "dec {steps}",
                    "jnz 2b",
                    a0 = inout(reg) a0 => _,
                    a1 = inout(reg) a1 => _,
                    b0 = inout(reg) b0 => _,
                    b1 = inout(reg) b1 => _,
                    steps = inout(reg) steps => _,
                    line = in(reg) 64usize,
                    size = const 2 * SIZE,
                    options(readonly, nostack),
                );
            }
            asm!(
                "tilestored [{out} + {line}], tmm0",
                "tilestored [{out} + {line} + 1024], tmm1",
                "tilestored [{out} + {line} + 2048], tmm2",
                "tilestored [{out} + {line} + 3072], tmm3",
                out = in(reg) out.as_mut_ptr(),
                line = in(reg) 64usize,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: gives the tiles back, which only this value uses.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

/// Part of one side as tiles.
struct Packed {
    /// `[count / 16, parts, depth / 32]` tiles.
    tiles: Vec<u16>,
    /// By what each vector is yet to be multiplied.
    powers: Vec<f32>,
    parts: usize,
    /// Tiles along `k`.
    steps: usize,
}

impl Packed {
    /// Some vectors, elements `start..start + depth` of each. With `paired`, rows of a tile hold two elements of
    /// each vector; otherwise 32 of one.
    fn new(side: Side<'_>, vectors: Range<usize>, start: usize, depth: usize, paired: bool) -> Self {
        let (count, parts, steps) = (vectors.len(), side.lines.parts(), depth.div_ceil(STEP));
        let blocks = count.div_ceil(TILE);
        let mut tiles = vec![0u16; blocks.next_multiple_of(2) * parts * steps * SIZE];
        let mut powers = vec![1.0f32; blocks.next_multiple_of(2) * TILE];
        let padded = steps * STEP;
        let mut lines = vec![0.0f32; TILE * padded];
        for (block, tiles) in tiles.chunks_exact_mut(parts * steps * SIZE).take(blocks).enumerate() {
            let first = vectors.start + block * TILE;
            let filled = TILE.min(vectors.end - first);
            read(side, first..first + filled, start, depth, padded, &mut lines);
            for (v, line) in lines.chunks_exact_mut(padded).take(filled).enumerate() {
                powers[block * TILE + v] = enlarge(&mut line[..depth]);
                for (part, tiles) in tiles.chunks_exact_mut(steps * SIZE).enumerate() {
                    for (tile, line) in tiles.chunks_exact_mut(SIZE).zip(line.chunks_exact_mut(STEP)) {
                        let mut halves = [0u16; STEP];
                        split(line, part + 1 == parts, &mut halves);
                        if paired {
                            for (row, pair) in tile.chunks_exact_mut(STEP).zip(halves.chunks_exact(2)) {
                                row[2 * v..][..2].copy_from_slice(pair);
                            }
                        } else {
                            tile[v * STEP..][..STEP].copy_from_slice(&halves);
                        }
                    }
                }
            }
        }
        Self { tiles, powers, parts, steps }
    }

    /// Where a part of two times sixteen vectors lies.
    fn places(&self, block: usize, part: usize) -> [*const u16; 2] {
        [block, block + 1].map(|block| {
            let at = (block * self.parts + part) * self.steps * SIZE;
            self.tiles[at..][..self.steps * SIZE].as_ptr()
        })
    }
}

/// Elements `start..start + depth` of vectors, each as a line of `padded` numbers; those beyond `depth` are zero.
fn read(side: Side<'_>, vectors: Range<usize>, start: usize, depth: usize, padded: usize, lines: &mut [f32]) {
    if !side.across {
        for (v, line) in vectors.zip(lines.chunks_exact_mut(padded)) {
            side.lines.read(v, start, &mut line[..depth]);
        }
        return;
    }
    let mut element = [0.0; TILE];
    let element = &mut element[..vectors.len()];
    for i in 0..depth {
        side.lines.read(start + i, vectors.start, element);
        for (line, value) in lines.chunks_exact_mut(padded).zip(&*element) {
            line[i] = *value;
        }
    }
}

/// Multiplies a line that is small throughout by a power of two, which brings its largest element to about
/// one; returns by what that is undone.
fn enlarge(line: &mut [f32]) -> f32 {
    const SMALL: f32 = 1.0 / (1u64 << 30) as f32;
    let largest = line.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    if largest == 0.0 || largest >= SMALL {
        return 1.0;
    }
    // At most 2^126, whose inverse is a normal number.
    let exponent = (254 - (largest.to_bits() >> 23)).min(127 + 126);
    let power = f32::from_bits(exponent << 23);
    line.iter_mut().for_each(|x| *x *= power);
    1.0 / power
}

/// The upper halves of the numbers of a line, which then holds what they leave; or with `last` the nearest.
fn split(line: &mut [f32], last: bool, halves: &mut [u16; STEP]) {
    for (half, x) in halves.iter_mut().zip(line) {
        if last {
            *half = half::bf16::from_f32(*x).to_bits();
        } else {
            let upper = f32::from_bits(x.to_bits() & 0xffff_0000);
            *half = (upper.to_bits() >> 16) as u16;
            *x = if upper.is_finite() { *x - upper } else { 0.0 };
        }
    }
}

/// The products of `few` and `many`, `[many / width, few, width]`, where both sides are of few parts; `width`
/// is a multiple of 32.
pub fn block(few: Side<'_>, vectors: Range<usize>, many: Side<'_>, k: usize, width: usize) -> Vec<f32> {
    let count = vectors.len();
    let packed: Vec<Packed> = (0..k)
        .step_by(DEPTH)
        .map(|start| Packed::new(few, vectors.clone(), start, DEPTH.min(k - start), true))
        .collect();
    let mut values = vec![0.0f32; many.count.div_ceil(width) * count * width];
    pool::for_each_piece(&mut values, count * width, |strip, sums| {
        let vectors = strip * width..many.count.min((strip + 1) * width);
        let tiles = Tiles::new();
        for (few, start) in packed.iter().zip((0..k).step_by(DEPTH)) {
            let many = Packed::new(many, vectors.clone(), start, DEPTH.min(k - start), false);
            multiply(&tiles, &many, few, count, width, sums);
        }
    });
    values
}

/// Adds the products to `sums`, `[count, width]`.
fn multiply(tiles: &Tiles, many: &Packed, few: &Packed, count: usize, width: usize, sums: &mut [f32]) {
    assert!(many.steps == few.steps && sums.len() == count * width && many.powers.len() <= width);
    let mut out = [[0.0f32; TILE * TILE]; 4];
    for f in (0..count.div_ceil(TILE)).step_by(2) {
        for m in (0..many.powers.len() / TILE).step_by(2) {
            let parts = (0..many.parts).flat_map(|p| (0..few.parts).map(move |q| [p, q]));
            let pairs = parts.map(|[p, q]| [many.places(m, p), few.places(f, q)]);
            tiles.products(pairs, few.steps, &mut out);
            for (i, tile) in out.iter().enumerate() {
                let (m, f) = ((m + i / 2) * TILE, (f + i % 2) * TILE);
                let Some(sums) = sums.get_mut(f * width + m..) else { continue };
                let (few, many) = (&few.powers[f..count.min(f + TILE)], &many.powers[m..][..TILE]);
                // SAFETY: where there are tiles, there is AVX-512 F.
                unsafe { add_turned(tile, sums, width, few, many) };
            }
        }
    }
}

/// Adds the columns of a tile to rows of `sums`, which are `stride` apart, each times a number of `rows` and its
/// elements times those of `columns`.
#[target_feature(enable = "avx512f")]
fn add_turned(tile: &[f32; TILE * TILE], sums: &mut [f32], stride: usize, rows: &[f32], columns: &[f32]) {
    // SAFETY: sixteen numbers each.
    let load = |from: &[f32]| unsafe { _mm512_loadu_ps(from[..TILE].as_ptr()) };
    let turned = transposed(std::array::from_fn(|r| load(&tile[r * TILE..])));
    let columns = load(columns);
    for (i, (row, values)) in rows.iter().zip(turned).enumerate() {
        let sums = &mut sums[i * stride..][..TILE];
        // One after the other: together they may be too small for a number.
        let value = _mm512_fmadd_ps(_mm512_mul_ps(values, columns), _mm512_set1_ps(*row), load(sums));
        // SAFETY: sixteen numbers.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), value) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(r: [__m512; TILE]) -> [__m512; TILE] {
    let pairs: [__m512; TILE] = std::array::from_fn(|i| {
        let (a, b) = (r[i / 2 * 2], r[i / 2 * 2 + 1]);
        if i % 2 == 0 { _mm512_unpacklo_ps(a, b) } else { _mm512_unpackhi_ps(a, b) }
    });
    // Lane `l` of vector `4 * i + j` has column `4 * l + j` of rows `4 * i` and on.
    let fours: [__m512; TILE] = std::array::from_fn(|i| {
        let first = i / 4 * 4 + i % 4 / 2;
        let (a, b) = (_mm512_castps_pd(pairs[first]), _mm512_castps_pd(pairs[first + 2]));
        _mm512_castpd_ps(if i % 2 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) })
    });
    std::array::from_fn(|column| {
        let (j, odd, upper) = (column % 4, column / 4 % 2 == 1, column / 8 == 1);
        let [low, high] = [0, 8].map(|i| {
            let (a, b) = (fours[i + j], fours[i + 4 + j]);
            if odd { _mm512_shuffle_f32x4::<0xdd>(a, b) } else { _mm512_shuffle_f32x4::<0x88>(a, b) }
        });
        if upper { _mm512_shuffle_f32x4::<0xdd>(low, high) } else { _mm512_shuffle_f32x4::<0x88>(low, high) }
    })
}
