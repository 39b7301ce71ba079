//! L-BFGS (Liu and Nocedal 1989) that asks instead of calling: it says where it wants the function, the caller tells
//! it value and gradient. So several problems on the same features advance side by side, and the features are
//! read once for all of them.

use std::collections::VecDeque;

/// Pairs of steps and gradient changes that stand for the curvature.
const HISTORY: usize = 10;
/// Share of the promised decrease that a step must bring (Armijo).
const DECREASE: f64 = 1e-4;
/// Share of the slope that may be left after a step (Wolfe).
const CURVATURE: f64 = 0.9;
/// Relative error of the values we are given, which come from f32 products: below it slopes decide instead (the
/// approximate Wolfe conditions of Hager and Zhang 2005).
const NOISE: f64 = 1e-7;
/// Trials of one line search before it is given up.
const TRIALS: usize = 40;

/// Numbers of f64 that a minimiser of `n` variables keeps.
pub fn numbers_kept(n: usize) -> usize {
    (2 * HISTORY + 6) * n
}

/// How a minimisation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// No component of the gradient is larger than the tolerance.
    Converged,
    /// The iterations were used up.
    Exhausted,
    /// No step along the direction improved anything: the numbers are as good as their precision.
    Stalled,
}

/// What an estimate of the inverse Hessian makes of a gradient: the metric in which steps are steepest.
pub type InverseHessian<'a> = &'a dyn Fn(&[f64]) -> Vec<f64>;

/// One minimisation under way.
pub struct Lbfgs<'a> {
    /// Stands for the curvature before there is a history; the identity if there is none.
    metric: Option<InverseHessian<'a>>,
    tolerance: f64,
    most_iterations: usize,
    iterations: usize,
    point: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
    /// Steps, gradient changes and 1/⟨step, change⟩, oldest first.
    history: VecDeque<(Vec<f64>, Vec<f64>, f64)>,
    direction: Vec<f64>,
    slope: f64,
    search: Search,
    trial: Vec<f64>,
    started: bool,
    end: Option<End>,
}

/// The step length that is being looked for: above `low`, below `high`.
#[derive(Clone, Copy, Debug)]
struct Search {
    step: f64,
    low: f64,
    high: f64,
    trials: usize,
}

impl Search {
    fn from(step: f64) -> Self {
        Search { step, low: 0.0, high: f64::INFINITY, trials: 0 }
    }
}

impl<'a> Lbfgs<'a> {
    /// Starts at `start`; ends when the largest component of the gradient is at most `tolerance`.
    pub fn new(start: Vec<f64>, tolerance: f64, most_iterations: usize) -> Self {
        let n = start.len();
        Lbfgs {
            metric: None,
            tolerance,
            most_iterations,
            iterations: 0,
            trial: start.clone(),
            point: start,
            value: f64::INFINITY,
            gradient: vec![0.0; n],
            history: VecDeque::with_capacity(HISTORY),
            direction: vec![0.0; n],
            slope: 0.0,
            search: Search::from(1.0),
            started: false,
            end: None,
        }
    }

    /// The same with a symmetric, positive definite estimate of the inverse Hessian to start out from.
    pub fn in_metric(self, metric: InverseHessian<'a>) -> Self {
        Lbfgs { metric: Some(metric), ..self }
    }

    /// Where value and gradient are wanted next.
    pub fn trial(&self) -> &[f64] {
        &self.trial
    }

    /// How it ended, once it has.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// The best point so far.
    pub fn point(&self) -> &[f64] {
        &self.point
    }

    /// The value there.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// The largest component of the gradient there.
    pub fn gradient_norm(&self) -> f64 {
        self.gradient.iter().fold(0.0, |largest, g| largest.max(g.abs()))
    }

    /// Steps taken.
    pub fn iterations(&self) -> usize {
        self.iterations
    }

    /// Takes value and gradient at [`trial`](Self::trial).
    ///
    /// # Panics
    /// If the gradient has another length, or the minimisation has ended.
    pub fn tell(&mut self, value: f64, gradient: Vec<f64>) {
        assert_eq!(gradient.len(), self.point.len(), "a gradient has one component for each variable");
        assert!(self.end.is_none(), "the minimisation has ended");
        if !self.started {
            self.started = true;
            (self.value, self.gradient) = (value, gradient);
            return self.set_out();
        }
        let slope = dot(&self.direction, &gradient);
        let Search { step, .. } = self.search;
        let descends = value <= self.value + DECREASE * step * self.slope
            || (value <= self.value + NOISE * self.value.abs()
                && slope <= (2.0 * DECREASE - 1.0) * self.slope);
        // A value that is not a number is too far.
        if !descends || !slope.is_finite() {
            self.search.high = step;
        } else if slope < CURVATURE * self.slope {
            self.search.low = step;
        } else {
            return self.accept(value, gradient);
        }
        self.search.trials += 1;
        if self.search.trials == TRIALS {
            return self.give_up();
        }
        let Search { low, high, .. } = self.search;
        self.search.step = if high.is_finite() { 0.5 * (low + high) } else { 2.0 * low };
        self.place_trial();
    }

    fn accept(&mut self, value: f64, gradient: Vec<f64>) {
        let taken: Vec<f64> = self.trial.iter().zip(&self.point).map(|(a, b)| a - b).collect();
        let change: Vec<f64> = gradient.iter().zip(&self.gradient).map(|(a, b)| a - b).collect();
        let product = dot(&taken, &change);
        // The curvature condition makes this positive but for rounding.
        if product > f64::EPSILON * dot(&change, &change) {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back((taken, change, product.recip()));
        }
        self.point.copy_from_slice(&self.trial);
        (self.value, self.gradient) = (value, gradient);
        self.iterations += 1;
        self.set_out();
    }

    /// Without a step that helps along this direction, the steepest one is tried; after it nothing is left.
    fn give_up(&mut self) {
        if self.history.is_empty() {
            self.end = Some(End::Stalled);
            return;
        }
        self.history.clear();
        self.set_out();
    }

    /// Chooses the next direction, or ends.
    fn set_out(&mut self) {
        if self.gradient_norm() <= self.tolerance {
            self.end = Some(End::Converged);
        } else if self.iterations >= self.most_iterations {
            self.end = Some(End::Exhausted);
        }
        if self.end.is_some() {
            return;
        }
        self.direction = self.quasi_newton();
        self.slope = dot(&self.direction, &self.gradient);
        if self.slope >= 0.0 || !self.slope.is_finite() {
            self.history.clear();
            self.direction = self.gradient.iter().map(|g| -g).collect();
            self.slope = dot(&self.direction, &self.gradient);
        }
        // Without curvature known, a first step of length one at most.
        let step = match self.metric {
            None if self.history.is_empty() => (-self.slope).sqrt().recip().min(1.0),
            _ => 1.0,
        };
        self.search = Search::from(step);
        self.place_trial();
    }

    fn place_trial(&mut self) {
        let step = self.search.step;
        for ((trial, point), direction) in self.trial.iter_mut().zip(&self.point).zip(&self.direction) {
            *trial = point + step * direction;
        }
    }

    /// `−H·gradient` by the two-loop recursion (Nocedal and Wright 2006, Algorithm 7.4).
    fn quasi_newton(&self) -> Vec<f64> {
        let mut q: Vec<f64> = self.gradient.iter().map(|g| -g).collect();
        let mut weights = Vec::with_capacity(self.history.len());
        for (step, change, inverse) in self.history.iter().rev() {
            let weight = inverse * dot(step, &q);
            add(&mut q, -weight, change);
            weights.push(weight);
        }
        if let Some(metric) = self.metric {
            q = metric(&q);
        }
        if let Some((_, change, inverse)) = self.history.back() {
            let curvature = match self.metric {
                Some(metric) => dot(change, &metric(change)),
                None => dot(change, change),
            };
            let scale = 1.0 / (inverse * curvature);
            q.iter_mut().for_each(|x| *x *= scale);
        }
        for ((step, change, inverse), weight) in self.history.iter().zip(weights.into_iter().rev()) {
            let factor = weight - inverse * dot(change, &q);
            add(&mut q, factor, step);
        }
        q
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], factor: f64, what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(x, y)| *x += factor * y);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimise(mut it: Lbfgs<'_>, function: impl Fn(&[f64]) -> (f64, Vec<f64>)) -> Lbfgs<'_> {
        while it.end().is_none() {
            let (value, gradient) = function(it.trial());
            it.tell(value, gradient);
        }
        it
    }

    #[test]
    fn a_quadratic_is_solved_exactly() {
        // ½·Σ aᵢ(xᵢ − i)², condition number 10⁴.
        let scales: Vec<f64> = (0..30).map(|i| 10_f64.powf(4.0 * f64::from(i) / 29.0)).collect();
        let function = |x: &[f64]| {
            let differences = x.iter().zip(0..).map(|(x, i)| x - f64::from(i));
            let gradient: Vec<f64> = differences.clone().zip(&scales).map(|(d, a)| a * d).collect();
            (differences.zip(&gradient).map(|(d, g)| 0.5 * d * g).sum(), gradient)
        };
        let it = minimise(Lbfgs::new(vec![0.0; 30], 1e-8, 1000), function);
        assert_eq!(it.end(), Some(End::Converged));
        assert!(it.value() < 1e-12 && it.gradient_norm() <= 1e-8);
        assert!(it.point().iter().zip(0..).all(|(x, i)| (x - f64::from(i)).abs() < 1e-7), "{:?}", it.point());
        // SciPy's L-BFGS-B needs 802.
        assert!(it.iterations() < 1000, "{}", it.iterations());
    }

    /// In the metric of its own Hessian a quadratic is round, and one step leads to its minimum.
    #[test]
    fn the_right_metric_needs_one_step() {
        let scales: Vec<f64> = (0..30).map(|i| 10_f64.powi(i / 4)).collect();
        let function = |x: &[f64]| {
            let gradient: Vec<f64> = x.iter().zip(&scales).map(|(x, a)| a * (x - 1.0)).collect();
            (gradient.iter().zip(&scales).map(|(g, a)| 0.5 * g * g / a).sum(), gradient)
        };
        let inverse = |gradient: &[f64]| gradient.iter().zip(&scales).map(|(g, a)| g / a).collect();
        let it = minimise(Lbfgs::new(vec![0.0; 30], 1e-6, 1000).in_metric(&inverse), function);
        assert_eq!((it.end(), it.iterations()), (Some(End::Converged), 1));
    }

    #[test]
    fn rosenbrocks_valley_is_followed_to_its_end() {
        let it = minimise(Lbfgs::new(vec![-1.2, 1.0], 1e-9, 1000), |x| {
            let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
            (a * a + 100.0 * b * b, vec![-2.0 * a - 400.0 * x[0] * b, 200.0 * b])
        });
        assert_eq!(it.end(), Some(End::Converged));
        assert!((it.point()[0] - 1.0).abs() < 1e-8 && (it.point()[1] - 1.0).abs() < 1e-8);
    }

    #[test]
    fn what_cannot_end_well_ends_all_the_same() {
        let slope = minimise(Lbfgs::new(vec![0.0], 1e-9, 5), |x| (-x[0].ln_1p(), vec![-1.0 / (1.0 + x[0])]));
        assert_eq!((slope.end(), slope.iterations()), (Some(End::Exhausted), 5));
        // A gradient that contradicts the value leaves no step that helps.
        let wrong = minimise(Lbfgs::new(vec![1.0], 1e-9, 100), |x| (x[0] * x[0] + 1.0, vec![-2.0 * x[0]]));
        assert_eq!(wrong.end(), Some(End::Stalled));
        let nowhere = minimise(Lbfgs::new(vec![1.0], 1e-9, 100), |x| {
            if x[0] < 0.9 { (f64::NAN, vec![f64::NAN]) } else { (x[0], vec![1.0]) }
        });
        assert!(nowhere.value() >= 0.9);
        assert!(minimise(Lbfgs::new(vec![0.0; 3], 1e-6, 9), |_| (1.0, vec![0.0; 3])).iterations() == 0);
    }
}
