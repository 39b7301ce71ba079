//! Panels of curves, drawn with plotters: on white for pictures of their own, or on the ground of a page, whose ink they
//! take, so that they are legible in light and dark.

use plotters::coord::Shift;
use plotters::prelude::*;

/// Places and values.
pub type Points = Vec<(f64, f64)>;

type Drawn<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stroke {
    /// Thin and pale, behind a smoothed one.
    Pale,
    /// A line.
    Line,
    /// A line with a dot at each point, for points that are few: a single one is no line.
    Dotted,
}

/// One curve of a panel.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Its name in the legend; none for a curve that needs no name.
    pub name: String,
    /// Which of [`colour`]'s it has.
    pub colour: usize,
    /// How it is drawn.
    pub stroke: Stroke,
    /// Ascending in x; finite.
    pub points: Points,
}

/// Curves over one axis.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// Under the horizontal axis.
    pub x_label: String,
    /// Beside the vertical axis.
    pub y_label: String,
    /// The curves, drawn in this order.
    pub curves: Vec<Curve>,
    /// Values that the vertical axis need not go beyond: 0 and 100 for percentages.
    pub bounds: Option<(f64, f64)>,
}

/// What a panel is drawn on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    /// White paper, with a legend.
    White,
    /// A page, whose ground shows through and whose text colour is the ink. The legend is the page's.
    Page,
}

/// Drawn as the ink; on a page it becomes the colour of the text.
const INK: RGBColor = RGBColor(60, 64, 72);
/// [`INK`] as plotters writes it.
const INK_HEX: &str = "#3C4048";

/// Distinct in hue, and in lightness as far as this goes; each contrasts at least 3 : 1 with white and with near-black, so
/// that one set serves light and dark pages.
const COLOURS: [RGBColor; 6] = [
    RGBColor(46, 124, 201),
    RGBColor(204, 102, 0),
    RGBColor(42, 150, 92),
    RGBColor(158, 98, 190),
    RGBColor(200, 70, 110),
    RGBColor(125, 128, 50),
];

/// The `i`-th curve's colour; there are six, then they come again.
pub fn colour(i: usize) -> String {
    let RGBColor(r, g, b) = COLOURS[i % COLOURS.len()];
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Pixels of a panel on a page. Narrow with large letters: on a telephone it is shown at half its size.
const SIZE: (u32, u32) = (640, 320);

/// `panel` as SVG for a page. It says its title to those who cannot see it.
pub fn panel_svg(panel: &Panel) -> String {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(&root, panel, 0.0, Ground::Page, 18)
            .and_then(|()| Ok(root.present()?))
            .expect("drawing into memory does not fail");
    }
    let label = html_escaped(&format!("{} over {}", panel.title, panel.x_label));
    svg.replace(INK_HEX, "currentColor").replacen(
        "<svg ",
        &format!("<svg role=\"img\" aria-label=\"{label}\" "),
        1,
    )
}

fn html_escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// Draws `panel` into `area`, its horizontal axis up to `last` at least, with letters of `size` pixels.
pub(super) fn draw(
    area: &DrawingArea<SVGBackend, Shift>,
    panel: &Panel,
    last: f64,
    ground: Ground,
    size: u32,
) -> Drawn<()> {
    let all = || panel.curves.iter().flat_map(|curve| &curve.points);
    let (mut low, mut high) = range(all().map(|point| point.1));
    if let Some((least, most)) = panel.bounds {
        (low, high) = (low.max(least), high.min(most));
        if high <= low {
            (low, high) = (least, most);
        }
    }
    let first = all().map(|point| point.0).fold(0.0, f64::min);
    let last = all().map(|point| point.0).fold(last.max(first + 1e-9), f64::max);
    let font = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(area)
        .margin_left(size)
        .margin_right(2 * size)
        .margin_top(size / 2)
        .x_label_area_size(if panel.x_label.is_empty() { 2 * size } else { 3 * size + 4 })
        .y_label_area_size(4 * size + 4)
        .build_cartesian_2d(first..last, low..high)?;
    let digits = digits(high - low);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(INK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.mix(0.6))
        .x_desc(&panel.x_label)
        .y_desc(&panel.y_label)
        .x_labels(7)
        .y_labels(6)
        .x_label_formatter(&|x| if last < 10.0 { format!("{x:.1}") } else { grouped(*x) })
        .y_label_formatter(&|y| format!("{y:.digits$}"))
        .label_style(font(size))
        .axis_desc_style(font(size + 1))
        .draw()?;
    let mut named = false;
    for curve in &panel.curves {
        let RGBColor(r, g, b) = COLOURS[curve.colour % COLOURS.len()];
        let colour = RGBColor(r, g, b);
        let style = match curve.stroke {
            Stroke::Pale => colour.mix(0.35).stroke_width(1),
            Stroke::Line | Stroke::Dotted => {
                colour.mix(1.0).stroke_width(if ground == Ground::Page { 3 } else { 2 })
            }
        };
        // Beyond the bounds there is nothing to see, and plotters cannot count that far.
        let points = || curve.points.iter().map(|&(x, y)| (x, y.clamp(low, high)));
        let series = chart.draw_series(LineSeries::new(points(), style))?;
        if !curve.name.is_empty() {
            named = true;
            series.label(&curve.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        if curve.stroke == Stroke::Dotted {
            chart.draw_series(points().map(|point| Circle::new(point, 3, colour.filled())))?;
        }
    }
    if named && ground == Ground::White {
        chart
            .configure_series_labels()
            .position(free_corner(panel, (first, last), (low, high)))
            .background_style(WHITE.mix(0.85))
            .label_font(font(size))
            .draw()?;
    }
    Ok(())
}

/// The corner where the fewest points of `panel` lie under a legend.
fn free_corner(panel: &Panel, (first, last): (f64, f64), (low, high): (f64, f64)) -> SeriesLabelPosition {
    let points = || panel.curves.iter().flat_map(|curve| &curve.points);
    let covered = |right: bool, upper: bool| {
        let across = |x: f64| (x - first) / (last - first);
        let up = |y: f64| (y - low) / (high - low);
        let under = |&&(x, y): &&(f64, f64)| {
            (if right { across(x) > 0.7 } else { across(x) < 0.3 })
                && (if upper { up(y) > 0.5 } else { up(y) < 0.5 })
        };
        points().filter(under).count()
    };
    [
        (covered(true, false), SeriesLabelPosition::LowerRight),
        (covered(false, true), SeriesLabelPosition::UpperLeft),
        (covered(true, true), SeriesLabelPosition::UpperRight),
        (covered(false, false), SeriesLabelPosition::LowerLeft),
    ]
    .into_iter()
    .min_by_key(|(points, _)| *points)
    .map_or(SeriesLabelPosition::LowerRight, |(_, corner)| corner)
}

/// At most `points` points, each the mean of its neighbours; more than the width in pixels cannot be told apart.
pub fn averaged(curve: &[(f64, f64)], points: usize) -> Points {
    let size = curve.len().div_ceil(points).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    curve.chunks(size).map(mean).collect()
}

/// The range of the values with some air around it.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), y| (l.min(y), h.max(y)));
    if low > high {
        return (0.0, 1.0);
    }
    let size = low.abs().max(high.abs());
    // Some width even where all values are equal, whatever their size, and labels short enough for their place.
    let air = if high - low <= 1e-3 * size { 0.1 * size } else { 0.06 * (high - low) };
    (low - air.max(1e-6), high + air.max(1e-6))
}

/// Digits after the point that tell the labels of an axis of this length apart.
fn digits(length: f64) -> usize {
    let digits = (1.3 - length.log10()).ceil();
    if digits.is_finite() { digits.clamp(0.0, 6.0) as usize } else { 0 }
}

/// `1234567` as `1 234 567`.
pub(super) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{a0}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: Points) -> Panel {
        let curve = Curve { name: "a < b".into(), colour: 0, stroke: Stroke::Dotted, points };
        Panel {
            title: "loss & \"more\"".into(),
            x_label: "optimiser step".into(),
            curves: vec![curve],
            ..Panel::default()
        }
    }

    #[test]
    fn a_panel_on_a_page_takes_the_pages_ink() {
        let svg = panel_svg(&panel(vec![(1.0, 2.0), (5.0, 3.0)]));
        assert!(
            svg.starts_with(
                "<svg role=\"img\" aria-label=\"loss &amp; &quot;more&quot; over optimiser step\""
            )
        );
        assert!(svg.contains("currentColor") && !svg.contains(INK_HEX) && !svg.contains("#FFFFFF"), "{svg}");
        assert!(svg.contains(&colour(0).to_uppercase()) && svg.matches("<circle").count() == 2, "{svg}");
    }

    #[test]
    fn hardly_any_or_strange_values_do_no_harm() {
        for points in [vec![], vec![(0.0, 0.0)], vec![(1.0, 1e300), (2.0, -1e300)], vec![(3.0, 1e-300); 3]] {
            let svg = panel_svg(&Panel { bounds: Some((0.0, 100.0)), ..panel(points.clone()) });
            assert!(svg.contains("</svg>") && !svg.contains("NaN"), "{points:?}: {svg}");
        }
    }

    #[test]
    fn equal_values_have_an_axis_that_can_be_read() {
        let (low, high) = range([0.03; 3].into_iter());
        assert!(low > 0.0 && low < 0.028 && high > 0.032, "{low} {high}");
        assert!(format!("{:.*}", digits(high - low), 0.03).len() <= 6);
        assert_eq!(range([10.0, 10.0].into_iter()), (9.0, 11.0));
        assert_eq!(range([0.0].into_iter()), (-1e-6, 1e-6));
    }

    #[test]
    fn a_legend_goes_where_no_curve_is() {
        let of = |points: Points| free_corner(&panel(points), (0.0, 8.0), (0.0, 50.0));
        assert!(matches!(of(vec![(1.0, 5.0), (8.0, 45.0)]), SeriesLabelPosition::LowerRight));
        assert!(matches!(of(vec![(4.0, 10.0), (8.0, 10.0)]), SeriesLabelPosition::UpperLeft));
        assert!(matches!(of(vec![(1.0, 45.0), (8.0, 10.0)]), SeriesLabelPosition::UpperRight));
    }

    #[test]
    fn colours_contrast_with_light_and_dark() {
        let linear = |c: u8| {
            let c = f64::from(c) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        let luminance = |RGBColor(r, g, b)| 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
        for colour in COLOURS {
            let l = luminance(colour);
            // WCAG's ratio; the dark page is #14161a.
            let (on_white, on_dark) =
                (1.05 / (l + 0.05), (l + 0.05) / (luminance(RGBColor(20, 22, 26)) + 0.05));
            assert!(on_white >= 3.0 && on_dark >= 3.0, "{colour:?}: {on_white:.2} {on_dark:.2}");
        }
    }

    #[test]
    fn averaging_keeps_means_and_bounds_points() {
        let curve: Points = (0..1001).map(|i| (f64::from(i), 2.0)).collect();
        let few = averaged(&curve, 100);
        assert!(few.len() <= 100 && few.iter().all(|p| p.1 == 2.0));
        assert_eq!(averaged(&curve, 2000), curve);
        assert_eq!([999.0, 1000.0, 1_234_567.0].map(grouped), ["999", "1\u{a0}000", "1\u{a0}234\u{a0}567"]);
        assert_eq!([1000.0, 30.0, 2.0, 0.03, f64::NAN].map(digits), [0, 0, 1, 3, 0]);
    }
}
