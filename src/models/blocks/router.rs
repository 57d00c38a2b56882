//! Routers: which experts a token goes to, and how much each of them counts.

use serde::Deserialize;

use super::{soft_cap, top_k};
use crate::array::{Array, Dtype, Index::Ellipsis};
use crate::error::Result;
use crate::models::Checks;
use crate::ops;

/// How logits become the scores of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// Softmax over all experts (Shazeer et al., "Outrageously Large Neural Networks", 2017).
    #[default]
    Softmax,
    /// Softmax over the chosen ones alone (Jiang et al., "Mixtral of Experts", 2024).
    #[serde(skip)]
    SoftmaxOfChosen,
    /// The sigmoid of each (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024).
    Sigmoid,
    /// `sqrt(ln(1 + e^x))` of each.
    #[serde(rename = "sqrtsoftplus")]
    SqrtSoftplus,
}

/// Groups of neighbouring experts. A token goes to experts of its best groups alone (DeepSeek-AI,
/// "DeepSeek-V2", 2024).
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    /// Groups of equal size.
    pub count: i32,
    /// How many of them a token uses.
    pub used: i32,
    /// How many of its best experts a group is judged by: 1 in DeepSeek V2, 2 in V3.
    pub best: i32,
}

impl Groups {
    /// `used` of `count` groups, judged by their best two experts; `None` if there is one group.
    pub fn by_best_two(count: i32, used: i32) -> Option<Self> {
        (count != 1).then_some(Self { count, used, best: 2 })
    }

    /// `scores`, `[..., experts]`, with negative infinity in the groups that are not used.
    fn limit(self, scores: &Array) -> Result<Array> {
        let dropped = self.count - self.used;
        if dropped == 0 {
            return Ok(scores.clone());
        }
        let grouped = ops::unflatten(scores, -1, &[self.count, -1])?;
        let of_group = ops::sum(&ops::topk(&grouped, self.best, -1)?, -1, true)?;
        let worst = ops::argpartition(&of_group, dropped - 1, -2)?.index((Ellipsis, ..dropped, ..))?;
        let never = Array::from(f32::NEG_INFINITY);
        ops::flatten(&ops::put_along_axis(&grouped, &worst, &never, -2)?, -2, -1)
    }
}

/// The number of experts, under the names that configs have for it; some have several.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct ExpertCount {
    n_routed_experts: Option<i32>,
    num_experts: Option<i32>,
    num_local_experts: Option<i32>,
}

impl ExpertCount {
    /// The number; 0 if the config has none.
    pub fn get(&self) -> i32 {
        self.n_routed_experts.or(self.num_experts).or(self.num_local_experts).unwrap_or(0)
    }
}

/// How tokens are sent to experts.
#[derive(Debug, Clone, Copy)]
pub struct Routing {
    /// Experts for each token.
    pub top_k: i32,
    /// Where [`soft_cap`] bends the logits.
    pub cap: Option<f32>,
    /// What the scores are.
    pub scoring: Scoring,
    /// What limits the choice.
    pub groups: Option<Groups>,
    /// Whether the weights of a token's experts are made to sum to 1.
    pub normalize: bool,
    /// Factor of the weights.
    pub scale: f32,
}

impl Routing {
    /// To the `top_k` experts with the best scores, which are their weights.
    pub fn new(top_k: i32, scoring: Scoring) -> Self {
        Self { top_k, cap: None, scoring, groups: None, normalize: false, scale: 1.0 }
    }

    /// The chosen experts, integers `[..., top_k]` in no order, and their weights, `float32` of the same
    /// shape, from the router's logits `[..., experts]`. `correction`, `[experts]`, is added to the scores
    /// for the choice, not for the weights (Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for
    /// Mixture-of-Experts", 2024).
    pub fn route(&self, logits: &Array, correction: Option<&Array>) -> Result<(Array, Array)> {
        let mut logits = ops::astype(logits, Dtype::Float32)?;
        if let Some(cap) = self.cap {
            logits = soft_cap(&logits, cap)?;
        }
        let scores = match self.scoring {
            Scoring::Softmax => ops::softmax(&logits, -1, true)?,
            Scoring::SoftmaxOfChosen => logits,
            Scoring::Sigmoid => ops::sigmoid(&logits)?,
            Scoring::SqrtSoftplus => ops::sqrt(&ops::logaddexp(&logits, 0)?)?,
        };
        let choice = correction.map_or(Ok(scores.clone()), |correction| &scores + correction)?;
        let choice = self.groups.map_or(Ok(choice.clone()), |groups| groups.limit(&choice))?;
        let experts = ops::stop_gradient(&top_k(&choice, self.top_k)?)?;
        let mut weights = ops::take_along_axis(&scores, &experts, -1)?;
        if self.scoring == Scoring::SoftmaxOfChosen {
            weights = ops::softmax(&weights, -1, true)?;
        }
        if self.normalize {
            weights = (&weights / (ops::sum(&weights, -1, true)? + 1e-20)?)?;
        }
        if self.scale != 1.0 {
            weights = (weights * self.scale)?;
        }
        Ok((experts, weights))
    }
}

impl Checks {
    /// Numbers of experts and of their groups.
    pub fn routing(self, experts: i32, routing: &Routing) -> Self {
        let &Routing { top_k, groups, scale, .. } = routing;
        let this = self.size("num_experts", experts);
        let this = this.that((1..=experts).contains(&top_k), || format!("{top_k} of {experts} experts"));
        let this = this.that(scale.is_finite(), || format!("`routed_scaling_factor` is {scale}"));
        let Some(Groups { count, used, best }) = groups else { return this };
        let size = experts.checked_div(count).unwrap_or(0);
        let fits = count > 0
            && (1..=count).contains(&used)
            && size >= best
            && i64::from(size) * i64::from(count) == i64::from(experts)
            && i64::from(size) * i64::from(used) >= i64::from(top_k);
        this.that(fits, || format!("{top_k} of {experts} experts in {used} of {count} groups"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(routing: &Routing, logits: &[f32], correction: Option<&[f32]>) -> (Vec<u32>, Vec<f32>) {
        let shape = [logits.len() as i32];
        let logits = Array::from_slice(logits, &[1, shape[0]]).unwrap();
        let correction = correction.map(|c| Array::from_slice(c, &shape).unwrap());
        let (experts, weights) = routing.route(&logits, correction.as_ref()).unwrap();
        let (experts, weights): (Vec<u32>, Vec<f32>) = (experts.to_vec().unwrap(), weights.to_vec().unwrap());
        let mut both: Vec<(u32, f32)> = experts.into_iter().zip(weights).collect();
        both.sort_by_key(|&(expert, _)| expert);
        both.into_iter().unzip()
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
    }

    /// Groups of two: scores .5 .5 | .9 .1 | .6 .7, of which the last two make 1.3, the most.
    #[test]
    fn only_experts_of_the_best_group_are_chosen() {
        let logit = |p: f32| (p / (1.0 - p)).ln();
        let logits = [0.5, 0.5, 0.9, 0.1, 0.6, 0.7].map(logit);
        let routing = Routing { groups: Groups::by_best_two(3, 1), ..Routing::new(2, Scoring::Sigmoid) };
        let (experts, weights) = routed(&routing, &logits, None);
        assert_eq!(experts, [4, 5]);
        close(&weights, &[0.6, 0.7]);
        // Corrections decide the choice alone; what is below zero is still above what is not used.
        let (experts, weights) = routed(&routing, &logits, Some(&[-1., -1., -1.4, -1., -1.9, -1.9]));
        assert_eq!(experts, [0, 1]);
        close(&weights, &[0.5, 0.5]);
    }

    #[test]
    fn weights_are_normalised_and_scaled() {
        let logits = [1f32, 2., 3., 0.];
        let sum: f32 = logits.iter().map(|x| x.exp()).sum();
        let [second, third] = [2f32, 3.].map(f32::exp);
        let plain = Routing::new(2, Scoring::Softmax);
        close(&routed(&plain, &logits, None).1, &[second / sum, third / sum]);
        let both = second + third;
        let normalized = Routing { normalize: true, scale: 2.0, ..plain };
        close(&routed(&normalized, &logits, None).1, &[2.0 * second / both, 2.0 * third / both]);
        let chosen = Routing::new(2, Scoring::SoftmaxOfChosen);
        close(&routed(&chosen, &logits, None).1, &[second / both, third / both]);
        let root = Routing::new(1, Scoring::SqrtSoftplus);
        close(&routed(&root, &logits, None).1, &[(1.0 + 3f32.exp()).ln().sqrt()]);
    }

    #[test]
    fn counts_that_do_not_fit_are_refused() {
        let refused =
            |experts, routing: &Routing| Checks::new("test").routing(experts, routing).done().is_err();
        let grouped = |count, used, best| Routing {
            groups: Some(Groups { count, used, best }),
            ..Routing::new(2, Scoring::Sigmoid)
        };
        assert!(!refused(8, &grouped(2, 1, 2)));
        for (experts, routing) in [
            (0, Routing::new(1, Scoring::Softmax)),
            (4, Routing::new(0, Scoring::Softmax)),
            (4, Routing::new(5, Scoring::Softmax)),
            (8, grouped(0, 0, 2)),
            (8, grouped(3, 1, 2)),
            (8, grouped(2, 3, 2)),
            (8, grouped(8, 1, 2)),
            (8, grouped(8, 1, 1)),
            (8, grouped(-2, -1, 2)),
            (8, Routing { scale: f32::NAN, ..Routing::new(2, Scoring::Softmax) }),
        ] {
            assert!(refused(experts, &routing), "{experts} {routing:?}");
        }
    }
}
