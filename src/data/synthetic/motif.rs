//! The ten motifs, as signed distances within a grid cell [−1, 1)².

/// The shapes, in the order of the labels.
#[derive(Clone, Copy)]
pub enum Motif {
    Disc,
    Ring,
    Triangle,
    Star,
    Cross,
    Bars,
    Stripes,
    Diagonals,
    Checks,
    Zigzag,
}

impl Motif {
    const ALL: [Motif; 10] = [
        Motif::Disc,
        Motif::Ring,
        Motif::Triangle,
        Motif::Star,
        Motif::Cross,
        Motif::Bars,
        Motif::Stripes,
        Motif::Diagonals,
        Motif::Checks,
        Motif::Zigzag,
    ];

    /// The motif of class `label`.
    ///
    /// # Panics
    /// If `label` is not below 10.
    pub fn of(label: u32) -> Self {
        Self::ALL[label as usize]
    }

    /// Whether each copy may stand a little beside its cell's centre: not where the copies must join.
    pub fn wobbles(self) -> bool {
        matches!(self, Motif::Disc | Motif::Ring | Motif::Triangle | Motif::Star | Motif::Cross)
    }

    /// Signed distance, in half cells, from a cell's point to the motif's edge: negative inside.
    pub fn distance(self, [x, y]: [f32; 2]) -> f32 {
        let (ax, ay) = (x.abs(), y.abs());
        let radius = || (x * x + y * y).sqrt();
        match self {
            Motif::Disc => radius() - 0.6,
            Motif::Ring => (radius() - 0.55).abs() - 0.17,
            Motif::Triangle => {
                let y = y + 0.15;
                (-y).max(0.5 * y + 0.866_025_4 * ax) - 0.45
            }
            Motif::Star => star([x, y]),
            Motif::Cross => (ax - 0.2).max(ay - 0.74).min((ay - 0.2).max(ax - 0.74)),
            Motif::Bars => (ax - 0.5).abs() - 0.18,
            Motif::Stripes => (ay - 0.5).abs() - 0.18,
            Motif::Diagonals => {
                let across = (x + y) * 0.5;
                ((across - floor(across) - 0.5).abs() - 0.2) * std::f32::consts::SQRT_2
            }
            Motif::Checks => {
                let edge = ax.min(ay).min(1.0 - ax).min(1.0 - ay);
                if x * y > 0.0 { -edge } else { edge }
            }
            Motif::Zigzag => {
                let wave = y + ax - 0.5;
                let wrapped = wave - 2.0 * floor((wave + 1.0) * 0.5);
                (wrapped.abs() - 0.36) * std::f32::consts::FRAC_1_SQRT_2
            }
        }
    }
}

/// A five-pointed star: the points on the inner side of at least four of a pentagon's five sides.
fn star([x, y]: [f32; 2]) -> f32 {
    const SIDES: [[f32; 2]; 5] = [
        [0.0, 1.0],
        [0.951_056_5, 0.309_017],
        [0.587_785_25, -0.809_017],
        [-0.587_785_25, -0.809_017],
        [-0.951_056_5, 0.309_017],
    ];
    let [mut largest, mut second] = [f32::NEG_INFINITY; 2];
    for [nx, ny] in SIDES {
        let outside = nx * x + ny * y - 0.25;
        second = second.max(outside.min(largest));
        largest = largest.max(outside);
    }
    second
}

/// `x.floor()` for small numbers, without the call that x86-64 needs for it by default.
pub fn floor(x: f32) -> f32 {
    let whole = x as i32 as f32;
    if whole > x { whole - 1.0 } else { whole }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::WOBBLE;
    use super::*;

    /// Points of a cell at the middle of an n×n raster's squares.
    fn raster(n: usize) -> impl Iterator<Item = [f32; 2]> {
        let at = move |i: usize| (2 * i + 1) as f32 / n as f32 - 1.0;
        (0..n * n).map(move |i| [at(i % n), at(i / n)])
    }

    #[test]
    fn motifs_cover_similar_shares_of_their_cell() {
        // Else mean brightness would give the class away.
        for (label, motif) in Motif::ALL.into_iter().enumerate() {
            let inside = raster(100).filter(|&point| motif.distance(point) < 0.0).count();
            assert!((1_300..=5_000).contains(&inside), "motif {label} covers {inside} of 10,000");
        }
    }

    #[test]
    fn distances_are_distances() {
        // Moving by a step changes a signed distance by at most the step: what smooth edges rely on.
        let step = 0.02f32;
        for (label, motif) in Motif::ALL.into_iter().enumerate() {
            for [x, y] in raster(50) {
                let here = motif.distance([x, y]);
                for there in [motif.distance([x + step, y]), motif.distance([x, y + step])] {
                    assert!(
                        (here - there).abs() <= step * 1.001,
                        "motif {label} at {x}, {y}: {here}, {there}"
                    );
                }
            }
        }
    }

    #[test]
    fn joined_motifs_are_periodic() {
        for motif in Motif::ALL.into_iter().filter(|motif| !motif.wobbles()) {
            for i in 0..100 {
                let at = i as f32 / 50.0 - 0.99;
                for [one, other] in [[[-1.0, at], [1.0, at]], [[at, -1.0], [at, 1.0]]] {
                    assert!((motif.distance(one) - motif.distance(other)).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn displaced_motifs_stay_inside_their_cell() {
        // The border of a cell, displaced by as much as can be, is not inside a compact motif.
        for (label, motif) in Motif::ALL.into_iter().enumerate().filter(|(_, motif)| motif.wobbles()) {
            for [x, y] in raster(200).filter(|[x, y]| x.abs().max(y.abs()) > 1.0 - WOBBLE) {
                assert!(motif.distance([x, y]) > -0.1, "motif {label} reaches {x}, {y}");
            }
        }
    }

    #[test]
    fn floor_is_the_floor() {
        for x in [-3.0f32, -2.5, -1e-9, -0.0, 0.0, 0.5, 1.0, 1.999_999_9, 7.25] {
            assert_eq!(floor(x), x.floor(), "{x}");
        }
    }
}
