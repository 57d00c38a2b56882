//! How scales and biases of groups are stored, and sixteen of them as numbers.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::{bf16, f16};

use super::super::{Scales, Weights};

/// How scales, and biases where there are any, are stored.
pub(in crate::kernels) trait Groups {
    /// Where they are.
    type Stored<'a>: Copy;

    /// Those of the weights, if they are stored so.
    fn of<'a>(w: &Weights<'a>) -> Option<Self::Stored<'a>>;

    /// How many there are.
    fn len(stored: Self::Stored<'_>) -> usize;

    /// Scales and biases from `at` on that the mask has, and zeros. Those `ahead` of them are fetched.
    ///
    /// # Safety
    /// The CPU must have the features of this path; there must be the numbers of the mask.
    unsafe fn read(stored: Self::Stored<'_>, at: usize, mask: __mmask16, ahead: usize) -> [__m512; 2];
}

/// Both as `T`.
pub(in crate::kernels) struct Floats<T>(PhantomData<T>);

impl<T: Sixteen> Groups for Floats<T> {
    type Stored<'a> = [&'a [T]; 2];

    fn of<'a>(w: &Weights<'a>) -> Option<[&'a [T]; 2]> {
        Some([T::of(&w.scales)?, T::of(w.biases.as_ref()?)?])
    }

    fn len(stored: [&[T]; 2]) -> usize {
        stored[0].len().min(stored[1].len())
    }

    #[inline(always)]
    unsafe fn read([scales, biases]: [&[T]; 2], at: usize, mask: __mmask16, ahead: usize) -> [__m512; 2] {
        // SAFETY: the caller vouches for all of it.
        unsafe { [sixteen(scales, at, mask, ahead), sixteen(biases, at, mask, ahead)] }
    }
}

/// Powers of two, without biases.
pub(in crate::kernels) struct Exponents;

impl Groups for Exponents {
    type Stored<'a> = &'a [u8];

    fn of<'a>(w: &Weights<'a>) -> Option<&'a [u8]> {
        if let (Scales::Exponent(scales), None) = (&w.scales, &w.biases) { Some(scales) } else { None }
    }

    fn len(stored: &[u8]) -> usize {
        stored.len()
    }

    #[inline(always)]
    unsafe fn read(stored: &[u8], at: usize, mask: __mmask16, ahead: usize) -> [__m512; 2] {
        // SAFETY: the caller vouches for all of it. Nothing is read where a prefetch points.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(stored.as_ptr().wrapping_add(at + ahead).cast());
            let codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, stored.as_ptr().add(at).cast()));
            let bits = _mm512_max_epi32(_mm512_slli_epi32::<23>(codes), _mm512_set1_epi32(1 << 22));
            [_mm512_castsi512_ps(bits), _mm512_setzero_ps()]
        }
    }
}

/// 8-bit floats, without biases.
pub(in crate::kernels) struct Floats8;

impl Groups for Floats8 {
    type Stored<'a> = &'a [u8];

    fn of<'a>(w: &Weights<'a>) -> Option<&'a [u8]> {
        if let (Scales::Float8(scales), None) = (&w.scales, &w.biases) { Some(scales) } else { None }
    }

    fn len(stored: &[u8]) -> usize {
        stored.len()
    }

    #[inline(always)]
    unsafe fn read(stored: &[u8], at: usize, mask: __mmask16, ahead: usize) -> [__m512; 2] {
        // SAFETY: the caller vouches for all of it. Nothing is read where a prefetch points.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(stored.as_ptr().wrapping_add(at + ahead).cast());
            let codes = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, stored.as_ptr().add(at).cast()));
            let bits = _mm512_slli_epi32::<20>(codes);
            let bits = _mm512_and_si512(bits, _mm512_set1_epi32(0x87f0_0000u32 as i32));
            let unbias = _mm512_set1_ps(f32::from_bits((127 + 120) << 23));
            [_mm512_mul_ps(_mm512_castsi512_ps(bits), unbias), _mm512_setzero_ps()]
        }
    }
}

/// As each matrix has them.
pub(in crate::kernels) struct Any;

impl Groups for Any {
    type Stored<'a> = Weights<'a>;

    fn of<'a>(w: &Weights<'a>) -> Option<Weights<'a>> {
        Some(*w)
    }

    fn len(w: Weights<'_>) -> usize {
        w.biases.map_or(w.scales.len(), |biases| biases.len().min(w.scales.len()))
    }

    #[inline(always)]
    unsafe fn read(w: Weights<'_>, at: usize, mask: __mmask16, ahead: usize) -> [__m512; 2] {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            match (w.scales, w.biases) {
                (Scales::Bfloat16(s), Some(Scales::Bfloat16(b))) => Floats::read([s, b], at, mask, ahead),
                (Scales::Float16(s), Some(Scales::Float16(b))) => Floats::read([s, b], at, mask, ahead),
                (Scales::Exponent(s), None) => Exponents::read(s, at, mask, ahead),
                (Scales::Float8(s), None) => Floats8::read(s, at, mask, ahead),
                (scales, biases) => {
                    let (mut read, count) = ([[0.0; 16]; 2], mask.count_ones() as usize);
                    scales.read(at, &mut read[0][..count]);
                    biases.iter().for_each(|biases| biases.read(at, &mut read[1][..count]));
                    read.map(|read| _mm512_loadu_ps(read.as_ptr()))
                }
            }
        }
    }
}

/// Those numbers from `at` on that the mask has, and zeros.
///
/// # Safety
/// The CPU must have the features of this path; there must be the numbers of the mask.
#[inline(always)]
unsafe fn sixteen<T: Sixteen>(from: &[T], at: usize, mask: __mmask16, ahead: usize) -> __m512 {
    // SAFETY: the caller vouches for the numbers. Nothing is read where a prefetch points.
    unsafe {
        let from = from.as_ptr().add(at);
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(ahead).cast());
        T::sixteen(mask, from)
    }
}

/// Numbers as stored, read sixteen at a time.
pub trait Sixteen: Copy + 'static {
    /// The numbers, if they are of this kind.
    fn of<'a>(numbers: &Scales<'a>) -> Option<&'a [Self]>;

    /// Zeros where the mask has none.
    ///
    /// # Safety
    /// The CPU must have AVX-512 BW and VL; there must be the numbers of the mask.
    unsafe fn sixteen(mask: __mmask16, from: *const Self) -> __m512;
}

impl Sixteen for f16 {
    #[inline(always)]
    fn of<'a>(numbers: &Scales<'a>) -> Option<&'a [f16]> {
        if let Scales::Float16(numbers) = numbers { Some(numbers) } else { None }
    }

    #[inline(always)]
    unsafe fn sixteen(mask: __mmask16, from: *const f16) -> __m512 {
        // SAFETY: the caller vouches for it.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from.cast())) }
    }
}

impl Sixteen for bf16 {
    #[inline(always)]
    fn of<'a>(numbers: &Scales<'a>) -> Option<&'a [bf16]> {
        if let Scales::Bfloat16(numbers) = numbers { Some(numbers) } else { None }
    }

    #[inline(always)]
    unsafe fn sixteen(mask: __mmask16, from: *const bf16) -> __m512 {
        // SAFETY: the caller vouches for it.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
}
