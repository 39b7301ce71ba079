//! Functions of tensors whose gradients are computed in Rust, as part of libtorch's graph.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

/// libtorch's tensor as C++ has it; `tch` calls the same thing by a name that it does not export.
#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn lemniscate_attach(
        output: *mut Opaque,
        inputs: *const *mut Opaque,
        count: usize,
        state: *mut c_void,
        backward: unsafe extern "C" fn(*mut c_void, *mut Opaque, *const bool, *mut *mut Opaque) -> bool,
        release: unsafe extern "C" fn(*mut c_void),
    );
}

/// The gradients of `N` inputs, `None` for those that are not wanted, from the gradient of the output.
type Gradients<const N: usize> = dyn FnMut(&Tensor, [bool; N]) -> [Option<Tensor>; N];

/// What C++ keeps: how many inputs there are is known to the functions that it is kept with.
struct State<const N: usize>(Box<Gradients<N>>);

/// `output`, from now on a function of `inputs` in libtorch's graph, if any of them asks for a gradient. `backward` gets
/// the gradient of the output, and for each input whether its gradient is wanted.
///
/// `output` must have been computed without a graph, and `backward` must not keep it: a node that holds its own output
/// is never freed. [`Tensor::detach`] makes what may be kept.
pub(super) fn attach<const N: usize>(
    output: Tensor,
    inputs: [&Tensor; N],
    backward: impl FnMut(&Tensor, [bool; N]) -> [Option<Tensor>; N] + 'static,
) -> Tensor {
    let state = Box::into_raw(Box::new(State::<N>(Box::new(backward))));
    let inputs = inputs.map(|input| input.as_ptr().cast::<Opaque>());
    // SAFETY: the pointers are to tensors that live until the call returns; C++ owns `state` from here on, calls
    // `gradients` only with it and before `release`, and `release` once.
    unsafe {
        let output = output.as_ptr().cast::<Opaque>().cast_mut();
        let inputs: [*mut Opaque; N] = inputs.map(<*const Opaque>::cast_mut);
        lemniscate_attach(output, inputs.as_ptr(), N, state.cast(), gradients::<N>, release::<N>);
    }
    output
}

/// Called from C++: see `Backward` there. A panic must not pass through it.
unsafe extern "C" fn gradients<const N: usize>(
    state: *mut c_void,
    gradient: *mut Opaque,
    wanted: *const bool,
    gradients: *mut *mut Opaque,
) -> bool {
    // SAFETY: `attach` made `state`, C++ has the only pointer to it, and `wanted` and `gradients` have N places.
    let (state, gradient, wanted, gradients) = unsafe {
        let gradient = Tensor::clone_from_ptr(gradient.cast());
        let places = &mut *gradients.cast::<[*mut Opaque; N]>();
        (&mut *state.cast::<State<N>>(), gradient, *wanted.cast::<[bool; N]>(), places)
    };
    let computed = catch_unwind(AssertUnwindSafe(|| state.0(&gradient, wanted)));
    let Ok(computed) = computed else { return false };
    for (place, tensor) in gradients.iter_mut().zip(computed) {
        if let Some(tensor) = tensor {
            *place = tensor.as_ptr().cast::<Opaque>().cast_mut();
            // C++ deletes it.
            std::mem::forget(tensor);
        }
    }
    true
}

/// Called from C++, once.
unsafe extern "C" fn release<const N: usize>(state: *mut c_void) {
    // SAFETY: `attach` made it from a box of this type, and C++ forgets it now.
    drop(unsafe { Box::from_raw(state.cast::<State<N>>()) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;
    use tch::{Device, Kind};

    /// `a·b`, element by element.
    fn product(a: &Tensor, b: &Tensor, calls: Rc<Cell<usize>>) -> Tensor {
        let (x, y) = (a.detach(), b.detach());
        attach(&x * &y, [a, b], move |gradient, wanted| {
            calls.set(calls.get() + 1);
            [wanted[0].then(|| gradient * &y), wanted[1].then(|| gradient * &x)]
        })
    }

    fn leaf(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    #[test]
    fn gradients_arrive_as_if_libtorch_had_computed_them() {
        let (a, b) = (leaf(&[1.0, -2.0, 3.0]), leaf(&[4.0, 5.0, -6.0]));
        let loss = |product: Tensor| (product.square() + &a).sum(Kind::Float);
        let ours = loss(product(&a, &b, Rc::default()));
        let theirs = loss(&a * &b);
        let gradients = |loss: Tensor| Tensor::run_backward(&[loss], &[&a, &b], false, false);
        for (ours, theirs) in gradients(ours).iter().zip(&gradients(theirs)) {
            assert!(ours.equal(theirs), "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn what_is_not_wanted_is_not_computed_and_nothing_is_kept_without_a_graph() {
        let (a, b) = (leaf(&[2.0]), Tensor::from_slice(&[3.0_f32]));
        let calls = Rc::<Cell<usize>>::default();
        let out = product(&a, &b, calls.clone());
        assert_eq!(Rc::strong_count(&calls), 2, "the graph holds the gradient");
        let gradient = &Tensor::run_backward(&[out.sum(Kind::Float)], &[&a], false, false)[0];
        assert_eq!((f64::try_from(gradient).unwrap(), calls.get()), (3.0, 1));
        assert_eq!(
            Rc::strong_count(&calls),
            1,
            "used up, its state is dropped though the output is still there"
        );
        drop(out);
        let out = tch::no_grad(|| product(&a, &b, calls.clone()));
        assert!(!out.requires_grad());
        assert_eq!(Rc::strong_count(&calls), 1);
    }

    #[test]
    fn a_panic_becomes_an_error_of_the_backward_pass() {
        let a = leaf(&[1.0]);
        let out = attach(Tensor::zeros([1], (Kind::Float, Device::Cpu)), [&a], |_, _| panic!("as intended"));
        let error = Tensor::f_run_backward(&[out], &[&a], false, false).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}
