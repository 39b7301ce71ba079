//! Small pictures that were asked for lately, up to a number of bytes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use axum::body::Bytes;

use super::state::Set;

/// Which picture: set, image, side in pixels.
pub type Key = (Set, u32, u32);

/// A cache whose pictures take at most `limit` bytes.
pub struct Thumbnails {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    pictures: HashMap<Key, (Bytes, u64)>,
    bytes: usize,
    /// Counts uses: what was used last has the highest.
    clock: u64,
}

impl Thumbnails {
    /// An empty cache for `limit` bytes of pictures.
    pub fn new(limit: usize) -> Self {
        Thumbnails { limit, inner: Mutex::default() }
    }

    /// The picture, if it is there.
    pub fn get(&self, key: &Key) -> Option<Bytes> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let now = inner.clock;
        let (picture, used) = inner.pictures.get_mut(key)?;
        *used = now;
        Some(picture.clone())
    }

    /// Keeps a picture; what was not used for longest makes room, half of all at a time.
    pub fn insert(&self, key: Key, picture: Bytes) {
        if picture.len() > self.limit {
            return;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let now = inner.clock;
        inner.bytes += picture.len();
        if let Some((old, _)) = inner.pictures.insert(key, (picture, now)) {
            inner.bytes -= old.len();
        }
        while inner.bytes > self.limit {
            let mut uses: Vec<u64> = inner.pictures.values().map(|(_, used)| *used).collect();
            let middle = uses.len() / 2;
            let (_, &mut oldest_kept, _) = uses.select_nth_unstable(middle);
            inner.pictures.retain(|_, (_, used)| *used > oldest_kept || *used == now);
            inner.bytes = inner.pictures.values().map(|(picture, _)| picture.len()).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_lately_stays_and_the_bound_holds() {
        let cache = Thumbnails::new(1000);
        let key = |i: u32| (Set::Train, i, 64);
        for i in 0..500 {
            cache.insert(key(i), Bytes::from(vec![i as u8; 90]));
            assert!(cache.get(&key(0)).is_some(), "it is used all the time ({i})");
            let inner = cache.inner.lock().unwrap();
            assert!(inner.bytes <= 1000);
            assert_eq!(inner.bytes, inner.pictures.values().map(|p| p.0.len()).sum::<usize>());
        }
        assert_eq!(cache.get(&key(499)).unwrap()[..], [243; 90]);
        assert!(cache.get(&key(1)).is_none());
        cache.insert(key(499), Bytes::from_static(b"other"));
        assert_eq!(&cache.get(&key(499)).unwrap()[..], b"other");
        cache.insert(key(7), Bytes::from(vec![0; 2000]));
        assert!(cache.get(&key(7)).is_none(), "larger than the whole cache");
    }
}
