use super::*;
use crate::model::threads::with_count;
use crate::model::to_vec_f32;
use tch::{Device, Kind};

/// Output and gradients of maps and weights of `convolution`, for one fixed gradient of the output.
fn passes(maps: &Tensor, weights: &Tensor, convolution: impl Fn(&Tensor, &Tensor) -> Tensor) -> [Tensor; 3] {
    let [x, w] = [maps, weights].map(|tensor| tensor.detach().set_requires_grad(true));
    let out = convolution(&x, &w);
    let seed = (Tensor::arange(out.numel() as i64, (Kind::Double, Device::Cpu)) * 0.7).sin();
    let seed = seed.to_kind(Kind::Float).to_kind(out.kind()).view_as(&out);
    let [dx, dw]: [Tensor; 2] =
        Tensor::run_backward(&[(&out * seed).sum(out.kind())], &[&x, &w], false, false).try_into().unwrap();
    [out.detach(), dx, dw]
}

fn random(size: &[i64], seed: i64) -> Tensor {
    let count: i64 = size.iter().product();
    let phase = Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + seed as f64;
    ((phase.sin() * 43_758.545_3).frac() * 2.0 - 0.3).view(size).to_kind(Kind::Float)
}

/// Root mean square of the difference, relative to that of the exact values.
fn error(found: &Tensor, exact: &Tensor) -> f64 {
    let square = |t: Tensor| f64::try_from(t.square().mean(Kind::Double)).unwrap();
    (square(found.to_kind(Kind::Double) - exact) / square(exact.shallow_clone())).sqrt()
}

#[test]
fn outputs_and_gradients_equal_a_direct_convolution_on_every_path() {
    // B, C, K, H, W: whole tiles, cut ones, one pixel, more rows of tiles than are worked on together, wide ones.
    let cases = [
        [2, 16, 32, 8, 8],
        [3, 32, 16, 7, 5],
        [1, 16, 16, 1, 1],
        [2, 16, 16, 2, 9],
        [40, 16, 16, 13, 12],
        [1, 16, 48, 3, 300],
        [5, 128, 16, 4, 4],
    ];
    let kinds = [(3, 1), (3, 2), (1, 2)];
    for isa in Isa::available() {
        for ([b, c, k, h, w], (size, stride)) in
            cases.into_iter().flat_map(|case| kinds.map(|kind| (case, kind)))
        {
            let maps = random(&[b, c, h, w], 1);
            let weights = random(&[k, c, size, size], 2) / ((size * size * c) as f64).sqrt();
            let conv = |x: &Tensor, w: &Tensor| x.conv2d(w, None::<Tensor>, stride, size / 2, 1, 1);
            let double = |t: &Tensor| t.to_kind(Kind::Double);
            let exact = passes(&double(&maps), &double(&weights), conv);
            let direct = passes(&maps, &weights, conv);
            let found = passes(&maps, &weights, |x, w| convolution_with(isa, x, w, stride));
            for ((found, exact), direct) in found.iter().zip(&exact).zip(&direct) {
                assert_eq!(found.size(), exact.size());
                let (ours, libtorch) = (error(found, exact), error(direct, exact));
                assert!(
                    ours < 3e-6,
                    "{isa:?} {size}×{size} / {stride} of {:?}: off by {ours:e}, libtorch {libtorch:e}",
                    [b, c, k, h, w]
                );
            }
        }
    }
}

#[test]
fn images_are_convolved_patch_by_patch() {
    // B, C, K, H, W, size, stride: the stems of both families, cut ones, images smaller than a patch.
    let cases = [
        [2, 3, 16, 33, 30, 7, 2],
        [3, 3, 32, 8, 9, 3, 1],
        [2, 1, 16, 2, 3, 7, 2],
        [1, 4, 16, 5, 1, 7, 1],
        [1, 3, 16, 9, 9, 5, 3],
    ];
    for isa in Isa::available() {
        for [b, c, k, h, w, size, stride] in cases {
            let maps = random(&[b, c, h, w], 1);
            let weights = random(&[k, c, size, size], 2);
            let both = |maps: &Tensor, weights: &Tensor, conv: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
                let weights = weights.detach().set_requires_grad(true);
                let out = conv(maps, &weights);
                (out.square() * 0.5).sum(out.kind()).backward();
                [out.detach(), weights.grad()]
            };
            let double = |t: &Tensor| t.to_kind(Kind::Double);
            let direct = |x: &Tensor, w: &Tensor| x.conv2d(w, None::<Tensor>, stride, size / 2, 1, 1);
            let exact = both(&double(&maps), &double(&weights), &direct);
            let found = both(&maps, &weights, &|x, w| convolution_with(isa, x, w, stride));
            for (found, exact) in found.iter().zip(&exact) {
                assert_eq!(found.size(), exact.size());
                let ours = error(found, exact);
                assert!(ours < 3e-6, "{isa:?} {:?}: off by {ours:e}", [b, c, k, h, w, size, stride]);
            }
        }
    }
}

#[test]
fn what_is_not_ours_is_not_taken() {
    let (maps, images) = (random(&[1, 16, 4, 4], 1), random(&[1, 3, 4, 4], 1));
    let weights = |size: &[i64]| random(size, 2);
    let here = !matches!(Isa::best(), Isa::Portable(_));
    assert_eq!(takes(&maps, &weights(&[16, 16, 3, 3]), 2), here);
    assert_eq!(takes(&images, &weights(&[16, 3, 7, 7]), 2), here);
    assert!(!takes(&maps, &weights(&[16, 16, 3, 3]), 3));
    assert!(!takes(&maps, &weights(&[8, 16, 3, 3]), 1));
    assert!(!takes(&maps, &weights(&[16, 16, 3, 1]), 1));
    assert!(!takes(&maps, &weights(&[16, 16, 5, 5]), 1));
    assert!(!takes(&maps, &weights(&[16, 16, 1, 1]), 1));
    assert!(!takes(&maps.to_kind(tch::Kind::BFloat16), &weights(&[16, 16, 3, 3]), 1));
    // Images have no gradient, and patches an end.
    assert!(!takes(&images.set_requires_grad(true), &weights(&[16, 3, 7, 7]), 2));
    assert!(!takes(&random(&[1, 15, 4, 4], 1), &weights(&[16, 15, 7, 7]), 2));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let maps = random(&[9, 32, 10, 11], 1);
    for (size, stride) in [(3, 1), (3, 2), (1, 2)] {
        let weights = random(&[16, 32, size, size], 2);
        let bits =
            || passes(&maps, &weights, |x, w| convolution(x, w, stride)).map(|tensor| to_vec_f32(&tensor));
        assert_eq!(with_count(1, bits), with_count(3, bits), "{size}×{size} / {stride}");
    }
}

#[test]
fn maps_in_any_order_of_memory_give_the_same_bits() {
    let (maps, weights) = (random(&[2, 16, 6, 6], 1), random(&[32, 16, 3, 3], 2));
    let last = maps.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let bits =
        |maps: &Tensor| passes(maps, &weights, |x, w| convolution(x, w, 1)).map(|tensor| to_vec_f32(&tensor));
    assert_eq!(bits(&maps), bits(&last));
}

#[test]
fn only_gradients_that_are_asked_for_are_computed_and_none_without_a_graph() {
    let (maps, weights) = (random(&[1, 16, 5, 5], 1), random(&[16, 16, 3, 3], 2).set_requires_grad(true));
    let out = convolution(&maps, &weights, 1);
    assert!(out.requires_grad());
    out.sum(Kind::Float).backward();
    assert!(weights.grad().defined() && !maps.grad().defined());
    assert!(!no_grad(|| convolution(&maps, &weights, 1)).requires_grad());
}

#[test]
fn a_value_that_is_not_finite_is_not_lost() {
    let weights = random(&[16, 16, 3, 3], 2);
    for value in [f64::NAN, f64::INFINITY] {
        let maps = random(&[1, 16, 6, 6], 1);
        let _ = maps.narrow(2, 3, 1).narrow(3, 2, 1).fill_(value);
        let out = convolution(&maps, &weights, 1);
        let near = out.narrow(2, 2, 3).narrow(3, 1, 3);
        assert!(to_vec_f32(&near).iter().all(|value| !value.is_finite()));
    }
}
