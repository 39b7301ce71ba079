//! Losses, gradients, Z and the bank's update held against PyTorch; tests/fixtures/objective/make.py wrote the
//! fixture. The bound is a few times what PyTorch's own single precision differs by.

use lemniscate::bank::{MemoryBank, Negatives, Noise};
use lemniscate::objective::normalizer::{Entries, estimate_ln_z};
use lemniscate::objective::{nce, proximal, softmax};
use serde_json::Value;

struct Golden(Value);

impl Golden {
    fn read() -> Self {
        let text = include_str!("fixtures/objective/golden.json");
        Golden(serde_json::from_str(text).unwrap())
    }
    fn number(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap()
    }
    fn floats(&self, name: &str) -> Vec<f32> {
        self.0[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    }
    fn indices(&self, name: &str) -> Vec<u32> {
        self.0[name].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
    }
    fn bank(&self) -> MemoryBank {
        MemoryBank::from_rows(self.number("n") as usize, self.number("dim") as usize, self.floats("bank"))
    }
}

fn largest_difference(found: &[f32], expected: &Value) -> f64 {
    let expected = expected.as_array().unwrap();
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b.as_f64().unwrap()).abs()).fold(0.0, f64::max)
}

/// Compares with what PyTorch found in double precision, and its own error in single precision.
fn compare(golden: &Golden, name: &str, loss: f64, gradient: &[f32]) {
    let expected = &golden.0[name];
    let number = |field: &str| expected[field].as_f64().unwrap();
    let loss_error = (loss - number("loss")).abs();
    let gradient_error = largest_difference(gradient, &expected["gradient"]);
    let (torch_loss, torch_gradient) = (number("float32_loss_error"), number("float32_gradient_error"));
    println!(
        "{name}: largest difference {loss_error:.1e} in the loss, {gradient_error:.1e} in the gradient \
         (PyTorch float32: {torch_loss:.1e}, {torch_gradient:.1e})"
    );
    assert!(loss_error < 2e-6, "{name}: loss {loss}, difference {loss_error:e}");
    let bound = 4.0 * torch_gradient + 1e-7;
    assert!(gradient_error < bound, "{name}: gradient differs by {gradient_error:e}, more than {bound:e}");
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let golden = Golden::read();
    let (bank, features, indices) = (golden.bank(), golden.floats("features"), golden.indices("indices"));
    let listed = golden.indices("negatives");
    let negatives = Negatives::Given(&listed);
    let noise = Noise::Uniform { n: bank.len() as u32 };
    let (t, ln_z) = (golden.number("temperature"), golden.number("ln_z"));

    let found = nce::loss(&features, &bank, &indices, &negatives, t, ln_z, &noise);
    compare(&golden, "nce", found.loss, &found.gradient);
    let found = softmax::sampled(&features, &bank, &indices, &negatives, t);
    compare(&golden, "sampled", found.loss, &found.gradient);
    let found = softmax::full(&features, &bank, &indices, t, &[]);
    compare(&golden, "full", found.loss, &found.gradient);
    let (loss, gradient) = proximal(&features, &bank, &indices, golden.number("lambda"));
    compare(&golden, "proximal", loss, &gradient);

    let z = estimate_ln_z(&features, &bank, &indices, &negatives, t, &noise, Entries::All);
    let difference = (z - golden.number("first_batch_ln_z")).abs();
    println!("first-batch ln Z: difference {difference:.1e}");
    assert!(difference < 1e-6, "ln Z differs by {difference:e}");
}

#[test]
fn the_updated_bank_is_that_of_pytorch() {
    let golden = Golden::read();
    let mut bank = golden.bank();
    let indices = golden.indices("indices");
    bank.update(&golden.floats("features"), &indices, golden.number("bank_momentum") as f32);
    let moved: Vec<f32> = indices.iter().flat_map(|&i| bank.row(i as usize).to_vec()).collect();
    let difference = largest_difference(&moved, &golden.0["moved_rows"]);
    println!("updated rows: largest difference {difference:.1e}");
    assert!(difference < 1e-7, "rows differ by {difference:e}");
    let before = golden.bank();
    for i in (0..bank.len()).filter(|&i| !indices.contains(&(i as u32))) {
        assert_eq!(bank.row(i), before.row(i));
    }
}
