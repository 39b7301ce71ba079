//! The machine against what Python wrote, against hand-made programs and against damage.

use super::numpy::{Dtype, ndarray, scalar};
use super::*;

/// The same values in every protocol; `tests/fixtures/pickle/make.py` wrote them.
const FIXTURES: [(&str, &[u8]); 9] = [
    ("py2.p0", include_bytes!("../../tests/fixtures/pickle/py2.p0")),
    ("py2.p1", include_bytes!("../../tests/fixtures/pickle/py2.p1")),
    ("py2.p2", include_bytes!("../../tests/fixtures/pickle/py2.p2")),
    ("py3.p0", include_bytes!("../../tests/fixtures/pickle/py3.p0")),
    ("py3.p1", include_bytes!("../../tests/fixtures/pickle/py3.p1")),
    ("py3.p2", include_bytes!("../../tests/fixtures/pickle/py3.p2")),
    ("py3.p3", include_bytes!("../../tests/fixtures/pickle/py3.p3")),
    ("py3.p4", include_bytes!("../../tests/fixtures/pickle/py3.p4")),
    ("py3.p5", include_bytes!("../../tests/fixtures/pickle/py3.p5")),
];

fn read(bytes: &[u8]) -> Pickle<'_> {
    Pickle::read(bytes).unwrap_or_else(|error| panic!("{error}"))
}

fn ints(pickle: &Pickle<'_>, id: Id) -> Vec<i64> {
    pickle.items(id).unwrap().iter().map(|&id| pickle.int(id).unwrap()).collect()
}

#[test]
fn every_protocol_means_the_same() {
    for (file, bytes) in FIXTURES {
        let p = read(bytes);
        assert_eq!(p.consumed(), bytes.len(), "{file}");
        let at = |key: &str| p.entry(p.root(), key).unwrap_or_else(|| panic!("{file}: no {key}"));
        let list = |key: &str| p.items(at(key)).unwrap_or_else(|| panic!("{file}: {key}")).to_vec();

        assert_eq!(p.get(at("none")), &Value::None, "{file}");
        assert_eq!(
            list("bools").iter().map(|&id| p.get(id)).collect::<Vec<_>>(),
            [&Value::Bool(true), &Value::Bool(false)]
        );
        let numbers = list("ints");
        let small: Vec<_> = numbers[..7].iter().map(|&id| p.int(id).unwrap()).collect();
        assert_eq!(small, [0, 255, 256, 65536, -1, 1 << 31, i64::MIN], "{file}");
        for (&id, (top, fill)) in numbers[7..].iter().zip([((7, 0x80), 0), ((8, 0x40), 0), ((8, 0xc0), 0xff)])
        {
            let Value::BigInt(bytes) = p.get(id) else { panic!("{file}: {:?}", p.get(id)) };
            assert_eq!(bytes[top.0], top.1, "{file}");
            assert!(bytes[..top.0].iter().all(|&b| b == 0), "{file}");
            assert!(bytes[top.0 + 1..].iter().all(|&b| b == fill), "{file}");
        }
        let floats: Vec<_> = list("floats").iter().map(|&id| p.get(id).clone()).collect();
        assert_eq!(floats, [0.5, -1e300, f64::INFINITY].map(Value::Float), "{file}");
        assert_eq!(p.text(at("text")).unwrap(), "caf\u{e9} \u{20ac} \u{1f600} \\n\n", "{file}");
        assert_eq!(p.bytes(at("bytes")).unwrap(), &b"\x00\xff'\n\\"[..], "{file}");
        for (n, &tuple) in list("tuples").iter().enumerate() {
            assert_eq!(ints(&p, tuple), (1..=n as i64).collect::<Vec<_>>(), "{file}");
        }
        assert_eq!(ints(&p, at("set")), [7], "{file}");

        let shared = list("shared");
        assert_eq!(shared[0], shared[1], "{file}: one list, referred to twice");
        assert_eq!(list("cycle"), [at("cycle")], "{file}: a list that contains itself");

        let ordered = p.entries(at("ordered")).unwrap();
        let keys: Vec<_> = ordered.iter().map(|&(key, _)| p.text(key).unwrap()).collect();
        assert_eq!(keys, ["b", "a"], "{file}");
        for (key, name, size) in [("classic", "Classic", 3), ("modern", "Modern", 4)] {
            let class = p.class(at(key)).unwrap();
            assert_eq!(class, Global { module: "__main__", name }, "{file}");
            assert_eq!(p.int(p.attribute(at(key), "size").unwrap()), Some(size), "{file}");
        }
        let listed = p.object(at("listed")).unwrap();
        assert_eq!(p.class(at("listed")).unwrap().name, "Listed", "{file}");
        // Protocols 0 and 1 hand the list to a helper; later ones append to the object.
        let items = match &listed.items[..] {
            [] => ints(&p, *p.items(listed.args).unwrap().last().unwrap()),
            items => items.iter().map(|&id| p.int(id).unwrap()).collect(),
        };
        assert_eq!(items, [5, 6], "{file}");
        assert_eq!(p.text(p.attribute(at("listed"), "name").unwrap()).unwrap(), "mine", "{file}");
        assert_eq!(p.global(at("class")).unwrap().to_string(), "collections.OrderedDict", "{file}");

        let array = ndarray(&p, at("array")).unwrap_or_else(|reason| panic!("{file}: {reason}"));
        assert_eq!(array.dtype, Dtype { kind: 'i', size: 2, big_endian: true }, "{file}");
        assert_eq!((&array.shape[..], array.fortran), (&[2, 3][..], false), "{file}");
        assert_eq!(*array.data, [0, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5], "{file}");
        let array = ndarray(&p, at("fortran")).unwrap_or_else(|reason| panic!("{file}: {reason}"));
        assert_eq!((array.dtype.to_string(), array.fortran), ("float32".into(), true), "{file}");
        assert_eq!(array.data[4..8], 3f32.to_le_bytes(), "{file}");

        let scalars: Vec<_> = list("scalars").iter().map(|&id| scalar(&p, id).unwrap()).collect();
        let expected = [Value::Float(0.25), Value::Int(-5), Value::Bool(true), Value::Float(2.0)];
        assert_eq!([&scalars[..2], &scalars[3..]].concat(), expected, "{file}");
        assert!(
            matches!(&scalars[2], Value::BigInt(bytes) if **bytes == [0, 0, 0, 0, 0, 0, 0, 128, 0]),
            "{file}"
        );
        assert_eq!(scalar(&p, at("array")), None);
        assert!(ndarray(&p, at("classic")).is_err());
    }
}

#[test]
fn what_follows_the_end_is_left_alone() {
    let two = b"K\x01.K\x02.";
    let first = read(two);
    assert_eq!((first.int(first.root()), first.consumed()), (Some(1), 3));
    let rest = read(&two[first.consumed()..]);
    assert_eq!(rest.int(rest.root()), Some(2));
}

#[test]
fn nothing_is_run() {
    let p = read(b"cos\nsystem\n(S'echo harm'\ntR.");
    assert_eq!(p.class(p.root()).unwrap().to_string(), "os.system");
    let args = p.items(p.object(p.root()).unwrap().args).unwrap();
    assert_eq!(p.text(args[0]).unwrap(), "echo harm");
}

#[test]
fn rare_opcodes() {
    // OBJ, POP of a mark, POP_MARK, DUP, persistent ids of both kinds, ADDITEMS, NEWOBJ_EX.
    let p = read(b"((c__main__\nA\nK\x01o0(K\x05K\x061(K\x022tPid7\nQ\x86.");
    let parts = p.items(p.root()).unwrap();
    assert_eq!(ints(&p, parts[0]), [2, 2]);
    let Value::Persistent(inner) = p.get(parts[1]) else { panic!("{:?}", p.get(parts[1])) };
    let Value::Persistent(line) = p.get(*inner) else { panic!("{:?}", p.get(*inner)) };
    assert_eq!(p.text(*line).unwrap(), "id7");
    let p = read(b"\x8f(K\x01K\x02\x90.");
    assert_eq!(ints(&p, p.root()), [1, 2]);
    let p = read(b"c__main__\nA\n(K\x01t}U\x01kK\x02s\x92.");
    let kwargs = p.object(p.root()).unwrap().kwargs.unwrap();
    assert_eq!(p.int(p.entry(kwargs, "k").unwrap()), Some(2));
}

#[test]
fn text_keys_of_either_python_are_found_and_the_last_one_counts() {
    let p = read(b"}(U\x01aK\x01X\x01\x00\x00\x00aK\x02U\x01\xe9K\x03u.");
    assert_eq!(p.int(p.entry(p.root(), "a").unwrap()), Some(2));
    assert_eq!(p.entry(p.root(), "b"), None);
    assert_eq!(p.text(p.entries(p.root()).unwrap()[2].0).unwrap(), "\u{e9}");
}

#[test]
fn errors_name_the_place_the_opcode_and_the_reason() {
    for (bytes, message) in [
        (&b""[..], "needs 1 bytes where 0 are left (byte 0, end of file)"),
        (b"K\x01", "needs 1 bytes where 0 are left (byte 2, end of file)"),
        (b"\x80\x06.", "protocol 6; 0 to 5 are read (byte 0, PROTO)"),
        (b"NX\xff\xff\xff\x7fabc", "needs 2147483647 bytes where 3 are left (byte 1, BINUNICODE)"),
        (
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff",
            "needs 18446744073709551615 bytes where 0 are left (byte 0, BINBYTES8)",
        ),
        (b"I12", "the line does not end (byte 0, INT)"),
        (b"h\x05.", "nothing is memoised as 5 (byte 0, BINGET)"),
        (b"(0.", "the stack is empty (byte 2, STOP)"),
        (b"K\x01(.", "the stack is empty (byte 3, STOP)"),
        (b"NN(s", "needs 2 values where the stack has 0 (byte 3, SETITEM)"),
        (b"t", "there is no mark (byte 0, TUPLE)"),
        (b"}(Nu", "a key has no value (byte 3, SETITEMS)"),
        (b"NNa", "only a list, a set or an object takes items (byte 2, APPEND)"),
        (b"NNb", "only an object takes a state (byte 2, BUILD)"),
        (b"N)R", "what is called is neither a name nor an object (byte 2, REDUCE)"),
        (b"c\n\nNR", "the arguments are no tuple (byte 4, REDUCE)"),
        (b"NN\x93", "module and name must be text (byte 2, STACK_GLOBAL)"),
        (
            b"\x82\x01",
            "a code from a program's own extension registry, which no file can explain (byte 0, EXT1)",
        ),
        (b"\x97", "its data was written somewhere else (out of band) (byte 0, NEXT_BUFFER)"),
        (b"PK\x03\x04", "the line does not end (byte 0, PERSID)"),
        (b"\x00", "0x00 is no opcode; this is not a pickle, or a damaged one (byte 0, unknown opcode)"),
    ] {
        assert_eq!(Pickle::read(bytes).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_million_nested_lists_are_read_and_dropped() {
    let mut bytes = vec![b']'; 1_000_000];
    bytes.extend(vec![b'a'; 999_999]);
    bytes.push(b'.');
    assert_eq!(read(&bytes).n_values(), 1_000_000);
}

#[test]
fn sharing_does_not_unfold() {
    // Each of 5,000 lists holds the one before twice: 2^5000 leaves, if anything unfolded it.
    let mut bytes = b"]".to_vec();
    for _ in 0..5_000 {
        bytes.extend(b"p1\n0](g1\ng1\ne");
    }
    bytes.push(b'.');
    assert_eq!(read(&bytes).n_values(), 5_001);
}

#[test]
fn a_tall_stack_does_not_make_small_tuples_expensive() {
    // Taking everything from the stack must not hand its capacity on to what is made of it.
    let mut bytes = b"(".to_vec();
    bytes.extend(vec![b'N'; 1_000_000]);
    bytes.push(b'1');
    for _ in 0..200_000 {
        bytes.extend(b"(l0");
    }
    bytes.extend(b"N.");
    assert_eq!(read(&bytes).n_values(), 1_200_001);
}

#[test]
fn memo_indices_may_be_anything() {
    let p = read(b"K\x01p18446744073709551615\n0K\x02r\xff\xff\xff\xff0K\x03\x940g18446744073709551615\nj\xff\xff\xff\xffh\x02\x87.");
    assert_eq!(ints(&p, p.root()), [1, 2, 3]);
}

#[test]
fn values_are_limited() {
    let mut bytes = vec![b'N'; (1 << 24) + 1];
    bytes.push(b'.');
    let error = Pickle::read(&bytes).unwrap_err();
    assert_eq!((error.offset, error.opcode), (1 << 24, "NONE"));
}

/// Reads a pickle and looks at every value in every way there is.
fn look_at_all(bytes: &[u8]) {
    let Ok(p) = Pickle::read(bytes) else { return };
    for index in 0..p.n_values() as u32 {
        let id = Id(index);
        let _ = (p.text(id), p.bytes(id), p.int(id), p.entries(id).map(|e| e.len()), p.attributes(id));
        let _ = (p.describe(id), p.items(id), ndarray(&p, id).map(|array| array.data.len()), scalar(&p, id));
    }
}

#[test]
fn damaged_pickles_cost_an_error_at_most() {
    for (_, bytes) in FIXTURES {
        for end in 0..bytes.len() {
            assert!(Pickle::read(&bytes[..end]).is_err(), "a prefix has no STOP");
        }
        let mut copy = bytes.to_vec();
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff, bytes[at] ^ b'.', bytes[at] ^ b'0', bytes[at] ^ b'('] {
                copy[at] ^= flip;
                look_at_all(&copy);
                copy[at] = bytes[at];
            }
        }
    }
}

#[test]
fn random_programs_cost_an_error_at_most() {
    use rand::RngExt;
    let mut rng = crate::rng::stream(7, crate::rng::Purpose::Test, 0, 0);
    for round in 0..5_000 {
        let (_, base) = FIXTURES[round % FIXTURES.len()];
        let mut bytes = base.to_vec();
        for _ in 0..rng.random_range(1..8) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.random_range(0..=255),
                1 => {
                    bytes.remove(at);
                }
                _ => {
                    let from = rng.random_range(0..base.len());
                    let to = (from + rng.random_range(1..20)).min(base.len());
                    bytes.splice(at..at, base[from..to].iter().copied());
                }
            }
        }
        look_at_all(&bytes);
    }
}
