//! The pickle machine and everything that looks at what it read.
#![no_main]

use lemniscate::pickle::{Pickle, numpy};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(pickle) = Pickle::read(data) else { return };
    // Every value comes from an opcode of at least one byte.
    assert!(pickle.n_values() <= 4 * data.len() + 16 && pickle.consumed() <= data.len());
    for id in pickle.ids() {
        let _ = (pickle.int(id), pickle.text(id), pickle.bytes(id), pickle.describe(id));
        let _ = (pickle.items(id), pickle.entries(id), pickle.attributes(id), pickle.class(id));
        let _ = (numpy::ndarray(&pickle, id).map(|array| array.shape.len()), numpy::scalar(&pickle, id));
    }
});
