use super::*;
use image::RgbImage;

fn image(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let mix = (x * 31 + y * 57 + x * y * 7) % 256;
        image::Rgb([mix as u8, (mix * 3 % 256) as u8, if (x + y) % 2 == 0 { 255 } else { 0 }])
    })
}

fn resized(image: &RgbImage, crop: Crop, size: (u32, u32), window: Crop) -> Vec<u8> {
    let mut out = vec![7; (window.width * window.height * 3) as usize];
    Resizer::default().resize(image, crop, size, window, false, &mut out);
    out
}

#[test]
fn a_window_equals_that_part_of_the_whole() {
    let source = image(41, 29);
    let crop = Crop { top: 3, left: 2, height: 26, width: 37 };
    for (width, height) in [(19, 23), (80, 51), (37, 26), (37, 90), (1, 1)] {
        let whole = resized(&source, crop, (width, height), Crop::whole(width, height));
        let window =
            Crop { top: height / 3, left: width / 4, height: height.div_ceil(2), width: width.div_ceil(2) };
        let part = resized(&source, crop, (width, height), window);
        let rows = whole.chunks_exact(width as usize * 3).skip(window.top as usize);
        let bytes = window.left as usize * 3..(window.left + window.width) as usize * 3;
        let expected: Vec<u8> =
            rows.take(window.height as usize).flat_map(|row| row[bytes.clone()].to_vec()).collect();
        assert_eq!(part, expected, "{width}x{height}");
    }
}

#[test]
fn a_mirrored_image_has_its_rows_reversed() {
    let source = image(41, 29);
    let crop = Crop { top: 3, left: 2, height: 26, width: 37 };
    for (width, height) in [(19, 23), (80, 51), (37, 26), (37, 90), (30, 9)] {
        let window = Crop { top: 1, left: 2, height: height - 3, width: width - 5 };
        let mut expected = resized(&source, crop, (width, height), window);
        for row in expected.chunks_exact_mut(window.width as usize * 3) {
            row.as_chunks_mut::<3>().0.reverse();
        }
        let mut out = vec![7; expected.len()];
        Resizer::default().resize(&source, crop, (width, height), window, true, &mut out);
        assert!(out == expected, "{width}x{height}");
    }
}

#[test]
fn pixels_outside_the_crop_do_not_leak_in() {
    let crop = Crop { top: 5, left: 4, height: 11, width: 13 };
    let inner = RgbImage::from_fn(40, 30, |x, y| {
        let inside = (4..17).contains(&x) && (5..16).contains(&y);
        image::Rgb(if inside { [90, 91, 92] } else { [255, 0, 255] })
    });
    for size in [(3, 4), (13, 12), (31, 29)] {
        let out = resized(&inner, crop, size, Crop::whole(size.0, size.1));
        assert!(out.chunks_exact(3).all(|pixel| pixel == [90, 91, 92]), "{size:?}");
    }
}

#[test]
fn both_compilations_agree() {
    let source = image(200, 3);
    let mut taps = Taps::default();
    taps.compute(199, 70, 0..70);
    let lines = &mut Vec::new();
    for rows in 1..=3 {
        let (mut fast, mut plain) = (vec![0; rows * 210], vec![0; rows * 210]);
        horizontal(source.as_raw(), 600, &taps, &(0..199), lines, &mut fast);
        weigh(lines, &taps, 0, &mut plain);
        assert_eq!(fast, plain);
    }
    taps.compute(3, 2, 0..2);
    let (mut fast, mut plain) = (vec![0; 1200], vec![0; 1200]);
    vertical(source.as_raw(), 600, &taps, 0, 600, &mut fast);
    vertical_portable(source.as_raw(), 600, &taps, 0, 600, &mut plain);
    assert_eq!(fast, plain);
}

#[test]
#[should_panic(expected = "of a (4, 4) image")]
fn a_crop_outside_the_image_is_refused() {
    let crop = Crop { top: 0, left: 3, height: 4, width: 2 };
    resized(&image(4, 4), crop, (2, 2), Crop::whole(2, 2));
}
