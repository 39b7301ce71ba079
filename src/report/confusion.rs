//! A confusion matrix as an SVG picture: true classes down, found classes across.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::eval::knn::Confusion;

/// Pixels of a cell, by the number of classes: large enough for its number while there are few.
const SMALL: usize = 30;
const INK: RGBColor = RGBColor(60, 64, 72);
const GRID: RGBColor = RGBColor(228, 230, 234);
/// Characters of a class name that are shown.
const NAME: usize = 18;

/// Draws `confusion`, each row as shares of its class's images, with the names of `classes`; numbers are per cent.
pub fn confusion_svg(title: &str, confusion: &Confusion, classes: &[String]) -> String {
    let mut svg = String::new();
    draw(&mut svg, title, confusion, classes).expect("drawing into memory does not fail");
    svg
}

fn draw(
    svg: &mut String,
    title: &str,
    confusion: &Confusion,
    classes: &[String],
) -> Result<(), Box<dyn std::error::Error>> {
    let n = confusion.n_classes();
    let named = n <= SMALL;
    let cell: i32 = if named { 36 } else { (900 / n as i32).clamp(1, 20) };
    let (left, top) = if named { (150, 170) } else { (30, 60) };
    let size = cell * n as i32;
    let root = SVGBackend::with_string(svg, ((left + size + 20) as u32, (top + size + 40) as u32))
        .into_drawing_area();
    root.fill(&WHITE)?;
    let font = |size: i32| ("sans-serif", size).into_font().color(&INK);
    root.draw(&Text::new(title.to_owned(), (10, 10), font(18)))?;
    root.draw(&Text::new("down: true class; across: found class; per cent of each row", (10, 34), font(12)))?;
    let name = |class: usize| {
        classes.get(class).map_or_else(|| class.to_string(), |c| c.chars().take(NAME).collect())
    };
    for truth in 0..n {
        let y = top + cell * truth as i32;
        if named {
            let beside = font(12).pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(name(truth), (left - 6, y + cell / 2), beside))?;
            let across = font(12).transform(FontTransform::Rotate270);
            root.draw(&Text::new(name(truth), (left + cell * truth as i32 + cell / 2 - 6, top - 6), across))?;
        }
        for found in 0..n {
            let (count, x) = (confusion.count(truth, found), left + cell * found as i32);
            // Of a thousand classes most pairs never occur.
            if count == 0 && !named {
                continue;
            }
            let share = f64::from(count) / f64::from(confusion.images(truth).max(1));
            let colour = if truth == found { RGBColor(31, 95, 168) } else { RGBColor(200, 60, 40) };
            let area = [(x, y), (x + cell, y + cell)];
            root.draw(&Rectangle::new(area, colour.mix(share.sqrt()).filled()))?;
            if named {
                root.draw(&Rectangle::new(area, GRID.stroke_width(1)))?;
                if share >= 0.005 {
                    let ink = if share > 0.35 { WHITE } else { INK };
                    let font = ("sans-serif", 12).into_font().color(&ink);
                    let centred = font.pos(Pos::new(HPos::Center, VPos::Center));
                    let number = format!("{:.0}", 100.0 * share);
                    root.draw(&Text::new(number, (x + cell / 2, y + cell / 2), centred))?;
                }
            }
        }
    }
    if !named {
        root.draw(&Rectangle::new([(left, top), (left + size, top + size)], INK.stroke_width(1)))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_classes_are_named_and_many_are_drawn() {
        let scores = [0.9, 0.1, 0.3, 0.2];
        let svg =
            confusion_svg("kNN", &Confusion::of(&scores, 2, &[0, 1]), &["cat".into(), "dog & pup".into()]);
        assert!(svg.starts_with("<svg") && svg.contains("dog &amp; pup") && svg.contains("100"), "{svg}");
        let n = 1000;
        let scores: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i % (n + 1) == 0))).collect();
        let truth: Vec<u32> = (0..n as u32).collect();
        let svg = confusion_svg("many", &Confusion::of(&scores, n, &truth), &[]);
        assert_eq!(svg.matches("#1F5FA8").count(), n);
        assert!(svg.len() < 300_000);
    }
}
