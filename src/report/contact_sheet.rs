//! Rows of pictures: a query, and what was found for it.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

/// Frame of an image of the same class as the query.
pub const SAME: [u8; 3] = [38, 162, 105];
/// Frame of an image of another class.
pub const OTHER: [u8; 3] = [210, 52, 52];

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
/// Behind an image that is not square.
const EMPTY: Rgb<u8> = Rgb([240, 240, 240]);

/// One picture of the sheet.
#[derive(Clone, Debug)]
pub struct Tile {
    /// The image, of any size and shape.
    pub image: RgbImage,
    /// The colour of its frame: [`SAME`], [`OTHER`], or none.
    pub frame: Option<[u8; 3]>,
}

/// Draws one row of tiles per entry of `rows`, each tile `tile_px` pixels a side with its frame inside them.
///
/// The first tile of a row is the query and stands apart. Rows may differ in length; images keep their proportions.
///
/// # Panics
/// If the sheet would have 2³² pixels a side or more, or `tile_px` is 0.
pub fn contact_sheet(rows: &[Vec<Tile>], tile_px: u32) -> RgbImage {
    assert!(tile_px > 0, "tiles need a size");
    let gap = (tile_px / 16).max(2);
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let count = |n: usize| u32::try_from(n).expect("a sheet of fewer than 2³² tiles a side");
    let width = gap + count(columns) * (tile_px + gap) + if columns > 1 { 2 * gap } else { 0 };
    let height = gap + count(rows.len()) * (tile_px + gap);
    let mut sheet = RgbImage::from_pixel(width, height, PAPER);
    for (y, row) in rows.iter().enumerate() {
        for (x, tile) in row.iter().enumerate() {
            let apart = if x > 0 { 2 * gap } else { 0 };
            let left = gap + apart + count(x) * (tile_px + gap);
            let top = gap + count(y) * (tile_px + gap);
            imageops::replace(&mut sheet, &drawn(tile, tile_px), left.into(), top.into());
        }
    }
    sheet
}

fn drawn(tile: &Tile, tile_px: u32) -> RgbImage {
    let frame = (tile_px / 20).max(2).min(tile_px / 2);
    let mut square = RgbImage::from_pixel(tile_px, tile_px, tile.frame.map_or(EMPTY, Rgb));
    let border = if tile.frame.is_some() { frame } else { 0 };
    let inner = tile_px - 2 * border;
    let (width, height) = tile.image.dimensions();
    if inner == 0 || width == 0 || height == 0 {
        return square;
    }
    imageops::replace(&mut square, &RgbImage::from_pixel(inner, inner, EMPTY), border.into(), border.into());
    let scale = f64::from(inner) / f64::from(width.max(height));
    let scaled = |side: u32| ((f64::from(side) * scale).round() as u32).clamp(1, inner);
    let (width, height) = (scaled(width), scaled(height));
    let image = imageops::resize(&tile.image, width, height, FilterType::CatmullRom);
    let place = |side: u32| i64::from(border + (inner - side) / 2);
    imageops::replace(&mut square, &image, place(width), place(height));
    square
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: u32, height: u32, frame: Option<[u8; 3]>) -> Tile {
        Tile { image: RgbImage::from_pixel(width, height, Rgb([10, 20, 30])), frame }
    }

    #[test]
    fn tiles_stand_in_rows_with_the_query_apart() {
        let rows = [
            vec![plain(32, 32, None), plain(32, 32, Some(SAME)), plain(8, 8, Some(OTHER))],
            vec![plain(5, 5, None)],
        ];
        let sheet = contact_sheet(&rows, 64);
        // Gap 4, query column at 4, the others at 4 + 8 + 68 = 80 and 148.
        assert_eq!(sheet.dimensions(), (4 + 3 * 68 + 8, 4 + 2 * 68));
        let at = |x, y| sheet.get_pixel(x, y).0;
        assert_eq!([at(0, 0), at(3, 3), at(75, 30), at(100, 100)], [PAPER.0; 4]);
        assert_eq!([at(4, 4), at(67, 67), at(36, 36), at(36, 104)], [[10, 20, 30]; 4]);
        assert_eq!([at(80, 4), at(82, 30), at(148, 4), at(211, 67)], [SAME, SAME, OTHER, OTHER]);
        assert_eq!([at(83, 7), at(112, 36), at(180, 36)], [[10, 20, 30]; 3]);
    }

    #[test]
    fn proportions_are_kept() {
        let sheet = contact_sheet(&[vec![plain(100, 50, None)]], 64);
        let at = |x, y| sheet.get_pixel(x, y).0;
        assert_eq!([at(36, 10), at(36, 60)], [EMPTY.0; 2]);
        assert_eq!([at(4, 36), at(67, 36), at(36, 20), at(36, 51)], [[10, 20, 30]; 4]);
    }

    #[test]
    fn awkward_sizes_do_no_harm() {
        for px in [1, 2, 3, 5] {
            contact_sheet(&[vec![plain(1, 1000, Some(SAME)), plain(0, 0, None)], vec![]], px);
        }
        assert_eq!(contact_sheet(&[], 64).dimensions(), (4, 4));
    }
}
