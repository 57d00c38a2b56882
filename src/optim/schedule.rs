//! Values that change from step to step, most often a learning rate.

use std::f64::consts::PI;
use std::fmt;

/// A number as a function of the step, counted from 0. A plain `f64` is a constant schedule.
///
/// ```
/// use mlxport::optim::Schedule;
///
/// // Ten steps up to 0.1, then half a cosine down to 0.01.
/// let rate = Schedule::linear(0.0, 0.1, 10).then(10, Schedule::cosine_decay(0.1, 20, 0.01));
/// assert_eq!((rate.at(0), rate.at(10)), (0.0, 0.1));
/// assert!((rate.at(1000) - 0.01).abs() < 1e-12);
/// ```
pub struct Schedule(Box<dyn Fn(u64) -> f64>);

impl Schedule {
    /// The value that `f` gives for the step.
    pub fn new(f: impl Fn(u64) -> f64 + 'static) -> Self {
        Self(Box::new(f))
    }

    /// The value at `step`.
    pub fn at(&self, step: u64) -> f64 {
        (self.0)(step)
    }

    /// From `init` to `end` in a straight line over `steps`, then `end`.
    pub fn linear(init: f64, end: f64, steps: u64) -> Self {
        Self::new(move |step| init + (end - init) * fraction(step, steps))
    }

    /// From `init` to `end` along half a cosine over `steps`, then `end`.
    pub fn cosine_decay(init: f64, steps: u64, end: f64) -> Self {
        Self::new(move |step| end + 0.5 * (1.0 + (PI * fraction(step, steps)).cos()) * (init - end))
    }

    /// `init * rate^step`.
    pub fn exponential_decay(init: f64, rate: f64) -> Self {
        Self::new(move |step| init * rate.powf(step as f64))
    }

    /// `init`, multiplied by `rate` after every `every` steps.
    pub fn step_decay(init: f64, rate: f64, every: u64) -> Self {
        Self::new(move |step| init * rate.powf((step / every.max(1)) as f64))
    }

    /// This schedule up to step `boundary`, from there `next`, which counts its steps from the boundary.
    pub fn then(self, boundary: u64, next: Schedule) -> Self {
        Self::new(move |step| match step.checked_sub(boundary) {
            None => self.at(step),
            Some(since) => next.at(since),
        })
    }
}

/// How much of `steps` is done at `step`, at most all of it.
fn fraction(step: u64, steps: u64) -> f64 {
    if step >= steps { 1.0 } else { step as f64 / steps as f64 }
}

impl From<f64> for Schedule {
    fn from(value: f64) -> Self {
        Self::new(move |_| value)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({} at step 0)", self.at(0))
    }
}
