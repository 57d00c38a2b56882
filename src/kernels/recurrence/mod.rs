//! Linear attention, the gated delta rule and the recurrence of RWKV-7: a matrix for each head as state.
//!
//! The kernel takes one position after the other, in `float32`; sums run in one fixed order. The reference
//! does several positions at once, by products of matrices.

mod cpu;
mod metal;
mod reference;

use std::sync::Once;

use half::{bf16, f16};

use self::cpu::{Group, ROWS, Rule, STEPS, Steps};
use super::lanes::{self, LANES, exp, lanes};
use super::math;
use super::path::Path;
use super::product::{Dense, Lines, Numbers, to_bf16, to_f16};
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype, Element};
use crate::error::{Error, Result};

const NAME: &str = "recurrence";
/// Elements of a state, times positions, that are worth another thread.
const WORK: usize = 1 << 16;

/// What [`linear_attention`] and [`gated_delta`] work on.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// `[batch, length, key_heads, key_dim]`.
    pub queries: &'a Array,
    /// `[batch, length, key_heads, key_dim]`.
    pub keys: &'a Array,
    /// `[batch, length, heads, value_dim]`, where neighbouring heads share a key head.
    pub values: &'a Array,
    /// `[batch, length, heads]`, or `[batch, length, heads, key_dim]` where each dimension of a key decays
    /// on its own. 0 or less.
    pub log_decay: &'a Array,
    /// The state of each head before the sequence, `[batch, heads, value_dim, key_dim]`; zeros without.
    pub state: Option<&'a Array>,
}

/// Linear attention with decay, for each head and position in order, in `float32`:
///
/// ```text
/// state <- state * exp(log_decay) + value key^T
/// output = state query
/// ```
///
/// This is also the recurrence of Mamba-2, with `C`, `B` and `dt x` for queries, keys and values (Dao and
/// Gu, "Transformers are SSMs", 2024). Returns the outputs, `[batch, length, heads, value_dim]` in the dtype
/// of the queries, and the last state, `[batch, heads, value_dim, key_dim]`.
pub fn linear_attention(sequence: &Sequence) -> Result<(Array, Array)> {
    let &Sequence { queries, keys, values, log_decay, state } = sequence;
    let inputs = [queries, keys, values, log_decay].into_iter().chain(state).collect();
    match path_for(Rule::Linear, &inputs) {
        Some(path) => run(Rule::Linear, path, &inputs),
        None => reference::recurrence(sequence, None),
    }
}

/// The gated delta rule (Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024; with
/// a decay for each dimension, Kimi Team, "Kimi Linear", 2025), which corrects what the state has for a key:
///
/// ```text
/// state <- state * exp(log_decay)
/// state <- state + beta (value - state key) key^T
/// output = state query
/// ```
///
/// with `beta` `[batch, length, heads]`; otherwise as [`linear_attention`].
pub fn gated_delta(sequence: &Sequence, beta: &Array) -> Result<(Array, Array)> {
    let &Sequence { queries, keys, values, log_decay, state } = sequence;
    let inputs = [queries, keys, values, log_decay, beta].into_iter().chain(state).collect();
    match path_for(Rule::Delta, &inputs) {
        Some(path) => run(Rule::Delta, path, &inputs),
        None => reference::recurrence(sequence, Some(beta)),
    }
}

/// The generalised delta rule (Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", 2025),
/// for each head and position in order, in `float32`:
///
/// ```text
/// state <- state * exp(log_decay) + (state a) b^T + value key^T
/// output = state query
/// ```
///
/// `inputs` are queries, decays, keys, values, `a` and `b`, all `[batch, length, heads, dims]`. Returns the
/// outputs, of the same shape, and the last state, `[batch, heads, dims, dims]`. Without a `state`, the
/// sequence starts from zeros.
pub fn wkv(inputs: [&Array; 6], state: Option<&Array>) -> Result<(Array, Array)> {
    let [queries, log_decay, keys, values, a, b] = inputs;
    let all = [queries, keys, values, log_decay, a, b].into_iter().chain(state).collect();
    match path_for(Rule::Wkv, &all) {
        Some(path) => run(Rule::Wkv, path, &all),
        None => reference::wkv(inputs, state),
    }
}

fn run(rule: Rule, path: Path, inputs: &Vec<&Array>) -> Result<(Array, Array)> {
    let mut outputs = apply(Recurrence { rule, path }, inputs.iter().copied())?;
    let state = outputs.swap_remove(1);
    Ok((outputs.swap_remove(0), state))
}

/// The path for these inputs, unless the reference is to be taken.
fn path_for(rule: Rule, inputs: &Vec<&Array>) -> Option<Path> {
    let float = |x: &&Array| matches!(x.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let shapes: Vec<&[i32]> = inputs.iter().map(|x| x.shape()).collect();
    static FIRST_USE: Once = Once::new();
    let sizes = Sizes::of(rule, &shapes).filter(|_| inputs.iter().all(float))?;
    // The portable path stands for the shader.
    let on_gpu = super::metal::is_active() && metal::suits(rule, sizes);
    if on_gpu { Some(Path::Portable) } else { lanes::path_for(NAME, &FIRST_USE) }
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    length: usize,
    key_heads: usize,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    /// Decays of a head at a position: one, or one for each dimension of a key.
    decays: usize,
}

impl Rule {
    /// Inputs besides queries, keys, values and decays.
    fn extra(self) -> usize {
        match self {
            Rule::Linear => 0,
            Rule::Delta => 1,
            Rule::Wkv => 2,
        }
    }
}

impl Sizes {
    /// The sizes that these inputs have, if they fit together.
    fn of(rule: Rule, shapes: &[&[i32]]) -> Option<Self> {
        let (&[queries, keys, values, log_decay], rest) = shapes.split_first_chunk::<4>()?;
        let (extra, state) = rest.split_at_checked(rule.extra())?;
        let (&[batch, length, key_heads, key_dim], &[_, _, heads, value_dim]) = (keys, values) else {
            return None;
        };
        let single = log_decay == [batch, length, heads];
        let each = log_decay == [batch, length, heads, key_dim];
        let extra_shape: &[i32] = if rule == Rule::Wkv { keys } else { &[batch, length, heads] };
        let fits = queries == keys
            && values[..2] == keys[..2]
            && heads.checked_rem(key_heads) == Some(0)
            && (single || each)
            && extra.iter().all(|&shape| shape == extra_shape)
            && (rule != Rule::Wkv || (each && values == keys))
            && matches!(state, [] | [_])
            && state.iter().all(|&shape| shape == [batch, heads, value_dim, key_dim]);
        let [batch, length, key_heads, heads, key_dim, value_dim] =
            [batch, length, key_heads, heads, key_dim, value_dim].map(|size| size as usize);
        let decays = if single { 1 } else { key_dim };
        fits.then_some(Self { batch, length, key_heads, heads, key_dim, value_dim, decays })
    }
}

struct Recurrence {
    rule: Rule,
    path: Path,
}

/// An input `[batch, length, heads, ...]` or `[batch, heads, ...]` by head.
struct Operand<'a> {
    numbers: Numbers<'a>,
    origin: usize,
    strides: &'a [i64],
}

impl<'a> Operand<'a> {
    fn of(view: &View<'a>) -> Result<Self> {
        let (numbers, origin) = Numbers::of(view)?;
        Ok(Self { numbers, origin, strides: view.strides() })
    }

    /// The lines along axis `line` and the axis behind it of the part at these indices.
    fn lines(&self, line: usize, at: [(usize, usize); 2]) -> Dense<'a> {
        let stride = |axis: usize| self.strides.get(axis).map_or(0, |&s| s as isize);
        let offset: isize = at.iter().map(|&(axis, index)| index as isize * stride(axis)).sum();
        let last = self.strides.len() - 1;
        let step = if last > line.max(at[1].0) { stride(last) } else { 0 };
        Dense {
            numbers: self.numbers,
            origin: self.origin.wrapping_add_signed(offset),
            line: stride(line),
            step,
        }
    }

    /// Of an input `[batch, length, heads, ...]`: a line for each position.
    fn positions(&self, batch: usize, head: usize) -> Dense<'a> {
        self.lines(1, [(0, batch), (2, head)])
    }

    /// Of an input `[batch, heads, rows, columns]`: a line for each row.
    fn rows(&self, batch: usize, head: usize) -> Dense<'a> {
        self.lines(2, [(0, batch), (1, head)])
    }
}

/// What a head computes: its last state, and its outputs at each position.
struct Head<'a, T> {
    state: &'a mut [f32],
    outputs: Vec<&'a mut [T]>,
}

impl Recurrence {
    fn fill<T: Element + Send>(
        &self,
        sizes: Sizes,
        inputs: &[View<'_>],
        outputs: &mut [ViewMut<'_>],
        cast: impl Fn(&[f32], &mut [T]) + Sync,
    ) -> Result<()> {
        let Sizes { length, heads, key_dim, value_dim, .. } = sizes;
        let [out, state] = outputs else {
            return Err(Error::argument(NAME, format!("{} outputs", outputs.len())));
        };
        let operands = inputs.iter().map(Operand::of).collect::<Result<Vec<_>>>()?;
        let states = state.as_mut_slice::<f32>()?.chunks_exact_mut(value_dim * key_dim);
        let mut all: Vec<Head<T>> = states.map(|state| Head { state, outputs: Vec::new() }).collect();
        for (i, out) in out.as_mut_slice::<T>()?.chunks_exact_mut(value_dim).enumerate() {
            all[i / (length * heads) * heads + i % heads].outputs.push(out);
        }
        let work = (length.max(1) * value_dim).saturating_mul(key_dim);
        let grain = WORK.div_ceil(work);
        pool::for_each_piece(&mut all, grain, |piece, part| {
            let mut room = Room::new(self.rule, sizes);
            for (i, head) in part.iter_mut().enumerate() {
                self.head(sizes, &operands, piece * grain + i, head, &mut room, &cast);
            }
        });
        Ok(())
    }

    fn head<T>(
        &self,
        sizes: Sizes,
        operands: &[Operand<'_>],
        index: usize,
        Head { state, outputs }: &mut Head<'_, T>,
        room: &mut Room,
        cast: impl Fn(&[f32], &mut [T]),
    ) {
        let Sizes { length, key_heads, heads, key_dim, value_dim, .. } = sizes;
        let (batch, head) = (index / heads, index % heads);
        let initial = operands.get(4 + self.rule.extra()).map(|state| state.rows(batch, head));
        let initial = |row: usize, out: &mut [f32]| initial.iter().for_each(|x| x.read(row, 0, out));
        if length == 0 {
            return state.chunks_exact_mut(key_dim).enumerate().for_each(|(row, out)| initial(row, out));
        }
        let key_head = head / (heads / key_heads);
        for start in (0..length).step_by(STEPS) {
            let steps = &mut room.steps;
            steps.count = STEPS.min(length - start);
            self.read(sizes, operands, [batch, head, key_head], start, steps, &mut room.line);
            for group in 0..steps.groups {
                let first = group * ROWS;
                let rows = ROWS.min(value_dim - first);
                for r in 0..rows {
                    let line = &mut room.line;
                    let row = &mut state[(first + r) * key_dim..][..key_dim];
                    let flat = &mut line.as_flattened_mut()[..key_dim];
                    if start > 0 {
                        flat.copy_from_slice(row)
                    } else {
                        flat.fill(0.0)
                    }
                    if start == 0 {
                        initial(first + r, flat);
                    }
                    room.rows.iter_mut().zip(&*line).for_each(|(rows, lane)| rows[r] = *lane);
                }
                math::run(self.path, Group { rule: self.rule, steps, group, state: &mut room.rows });
                for r in 0..rows {
                    let row = &mut state[(first + r) * key_dim..][..key_dim];
                    for (row, lane) in row.chunks_mut(LANES).zip(&room.rows) {
                        row.copy_from_slice(&lane[r][..row.len()]);
                    }
                }
            }
            let results = steps.outputs.chunks_exact(steps.groups);
            for (out, result) in outputs[start..].iter_mut().zip(results).take(steps.count) {
                cast(&result.as_flattened()[..value_dim], out);
            }
        }
    }

    /// Reads the vectors of some positions.
    fn read(
        &self,
        sizes: Sizes,
        operands: &[Operand<'_>],
        [batch, head, key_head]: [usize; 3],
        start: usize,
        steps: &mut Steps,
        line: &mut [[f32; LANES]],
    ) {
        let Sizes { key_dim, value_dim, decays, .. } = sizes;
        let (width, groups) = (steps.width, steps.groups);
        let vectors = |operand: usize, head: usize, out: &mut [[f32; LANES]]| {
            let from = operands[operand].positions(batch, head);
            for (t, out) in out.chunks_exact_mut(width).take(steps.count).enumerate() {
                let (numbers, rest) = out.as_flattened_mut().split_at_mut(key_dim);
                from.read(start + t, 0, numbers);
                // Of decays these have become exponentials.
                rest.fill(0.0);
            }
        };
        vectors(0, key_head, &mut steps.query);
        vectors(1, key_head, &mut steps.key);
        let values = operands[2].positions(batch, head);
        for (t, out) in steps.values.chunks_exact_mut(groups).take(steps.count).enumerate() {
            values.read(start + t, 0, &mut out.as_flattened_mut()[..value_dim]);
        }
        if decays == key_dim && operands[3].strides.len() == 4 {
            vectors(3, head, &mut steps.decay);
            exp(self.path, &mut steps.decay[..steps.count * width]);
        } else {
            let from = operands[3].positions(batch, head);
            for (t, out) in steps.decay.chunks_exact_mut(width).take(steps.count).enumerate() {
                from.read(start + t, 0, &mut line[0][..1]);
                out.fill([line[0][0].exp(); LANES]);
            }
        }
        match self.rule {
            Rule::Linear => {}
            Rule::Delta => {
                let betas = operands[4].positions(batch, head);
                for t in 0..steps.count {
                    betas.read(start + t, 0, &mut line[0][..1]);
                    let (beta, at) = (line[0][0], t * width..(t + 1) * width);
                    let keys = steps.key[at.clone()].as_flattened_mut().iter_mut();
                    let finds = steps.find[at.clone()].as_flattened_mut();
                    for ((key, find), decay) in keys.zip(finds).zip(steps.decay[at].as_flattened()) {
                        *find = -(*key * decay);
                        *key *= beta;
                    }
                }
            }
            Rule::Wkv => {
                vectors(4, head, &mut steps.find);
                vectors(5, head, &mut steps.other);
            }
        }
    }
}

/// What a thread needs besides inputs and outputs.
struct Room {
    steps: Steps,
    /// Some rows of a state.
    rows: Vec<[[f32; LANES]; ROWS]>,
    /// One of them.
    line: Vec<[f32; LANES]>,
}

impl Room {
    fn new(rule: Rule, sizes: Sizes) -> Self {
        let Sizes { length, key_dim, value_dim, .. } = sizes;
        Self {
            steps: Steps::new(rule, STEPS.min(length), value_dim, key_dim),
            rows: vec![[[0.0; LANES]; ROWS]; lanes(key_dim)],
            line: vec![[0.0; LANES]; lanes(key_dim)],
        }
    }
}

impl CustomKernel for Recurrence {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let shapes: Vec<&[i32]> = inputs.iter().map(|spec| &spec.shape[..]).collect();
        if Sizes::of(self.rule, &shapes).is_none() {
            return Err(Error::argument(NAME, format!("inputs of shapes {shapes:?}")));
        }
        let (keys, values) = (&shapes[1], &shapes[2]);
        let state = [values[0], values[2], values[3], keys[3]];
        Ok(vec![Spec::new(values, inputs[0].dtype), Spec::new(&state, Dtype::Float32)])
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let shapes: Vec<&[i32]> = inputs.iter().map(|view| view.shape()).collect();
        let sizes = Sizes::of(self.rule, &shapes)
            .ok_or_else(|| Error::argument(NAME, format!("inputs of shapes {shapes:?}")))?;
        // Without a state there is nothing to read, and the outputs are zeros as they are.
        if sizes.batch * sizes.heads * sizes.value_dim * sizes.key_dim == 0 {
            return Ok(());
        }
        match inputs[0].dtype() {
            Dtype::Float16 => self.fill::<f16>(sizes, inputs, outputs, to_f16),
            Dtype::Bfloat16 => self.fill::<bf16>(sizes, inputs, outputs, to_bf16),
            _ => self.fill::<f32>(sizes, inputs, outputs, |x, out| out.copy_from_slice(x)),
        }
    }

    fn metal(&self, inputs: &[Array]) -> Option<Result<Vec<Array>>> {
        let shapes: Vec<&[i32]> = inputs.iter().map(|x| x.shape()).collect();
        let sizes = Sizes::of(self.rule, &shapes).filter(|&sizes| metal::suits(self.rule, sizes))?;
        Some(metal::recurrence(self.rule, sizes, inputs))
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let (out, state) = match (self.rule, inputs) {
            (Rule::Wkv, [q, k, v, decay, a, b, state @ ..]) => {
                reference::wkv([q, decay, k, v, a, b], state.first())
            }
            (rule, [queries, keys, values, log_decay, rest @ ..]) => {
                let (beta, state) = rest.split_at(rule.extra().min(rest.len()));
                let sequence = Sequence { queries, keys, values, log_decay, state: state.first() };
                reference::recurrence(&sequence, beta.first())
            }
            _ => Err(Error::argument(NAME, format!("{} inputs", inputs.len()))),
        }?;
        Ok(vec![out, state])
    }

    fn takes_strided(&self, _: usize) -> bool {
        true
    }
}
