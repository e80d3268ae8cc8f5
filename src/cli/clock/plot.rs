//! Lines over time as inline SVG. Coordinates are integers, a tenth of a pixel.

use std::fmt::Write as _;

use super::units::show_ns;

/// One line.
pub struct Series<'a> {
    /// In the legend.
    pub name: &'a str,
    /// (s, ns).
    pub points: &'a [(u64, i128)],
    /// Its class in the style sheet, which gives it a colour and a dash.
    pub class: &'a str,
}

const WIDTH: i128 = 7_200;
const HEIGHT: i128 = 2_600;
const LEFT: i128 = 900;
const RIGHT: i128 = 100;
const TOP: i128 = 100;
const BOTTOM: i128 = 300;

/// A plot of `series` over `seconds`; `title` is its description for those who
/// do not see it.
pub fn plot(title: &str, seconds: u64, series: &[Series<'_>]) -> String {
    let values = || series.iter().flat_map(|line| line.points).map(|(_, value)| *value);
    let low = values().min().unwrap_or(0).min(0);
    let high = values().max().unwrap_or(0).max(0);
    let step = tick_step(high - low);
    let low = low.div_euclid(step) * step;
    // A flat line has something above it.
    let high = ((high + step - 1).div_euclid(step) * step).max(low + step);
    let x = |at: u64| LEFT + (WIDTH - LEFT - RIGHT) * i128::from(at) / i128::from(seconds.max(1));
    let y = |value: i128| TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low);

    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n",
        tenths(WIDTH),
        tenths(HEIGHT),
        escape(title)
    );
    let mut value = low;
    while value <= high {
        let (class, at) = (if value == 0 { "zero" } else { "grid" }, tenths(y(value)));
        let _ = writeln!(
            svg,
            "<path class=\"{class}\" d=\"M{} {at}H{}\"/><text class=\"y\" x=\"{}\" y=\"{at}\">{}</text>",
            tenths(LEFT),
            tenths(WIDTH - RIGHT),
            tenths(LEFT - 60),
            show_ns(value)
        );
        value += step;
    }
    let (unit, name) = time_unit(seconds);
    let count = seconds / unit;
    let every = u64::try_from(tick_step(i128::from(count))).unwrap_or(1).max(1);
    for at in (0..=count).step_by(usize::try_from(every).unwrap_or(1)) {
        let _ = writeln!(
            svg,
            "<text class=\"x\" x=\"{}\" y=\"{}\">{at}{}</text>",
            tenths(x(at * unit)),
            tenths(HEIGHT - BOTTOM + 160),
            if at == 0 { format!(" {name}") } else { String::new() }
        );
    }
    for line in series {
        let mut path = String::new();
        for (index, (at, value)) in line.points.iter().enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{} {}", tenths(x(*at)), tenths(y(*value)));
        }
        let _ = writeln!(svg, "<path class=\"line {}\" d=\"{path}\"/>", line.class);
    }
    svg.push_str("</svg>\n<p class=\"legend\">");
    for line in series {
        let _ = write!(
            svg,
            "<span><svg viewBox=\"0 0 30 8\"><path class=\"line {}\" d=\"M0 4H30\"/></svg> {}</span> ",
            line.class,
            escape(line.name)
        );
    }
    svg.push_str("</p>\n");
    svg
}

/// A step of 1, 2 or 5 times a power of ten that divides `range` into 8 at most.
fn tick_step(range: i128) -> i128 {
    let mut power = 1i128;
    loop {
        for factor in [1, 2, 5] {
            if power * factor * 8 >= range {
                return power * factor;
            }
        }
        // The range of an i128 has 39 digits; errors have 20.
        power = power.saturating_mul(10);
        if power >= i128::MAX / 100 {
            return power;
        }
    }
}

fn time_unit(seconds: u64) -> (u64, &'static str) {
    let units = [(31_557_600, "years"), (86_400, "days"), (3_600, "hours"), (60, "minutes")];
    units.into_iter().find(|(unit, _)| seconds / unit >= 2).unwrap_or((1, "seconds"))
}

/// Tenths of a pixel as SVG reads them.
fn tenths(value: i128) -> String {
    format!("{}.{}", value / 10, value % 10)
}

/// Text inside of markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_few() {
        for (range, step) in
            [(1, 1), (8, 1), (9, 2), (16, 2), (17, 5), (40, 5), (41, 10), (34_555_233, 5_000_000)]
        {
            assert_eq!(tick_step(range), step, "{range}");
        }
        assert!(tick_step(i128::MAX) > 0);
    }

    #[test]
    fn every_point_lies_inside() {
        for points in [
            vec![(0, 0)],
            vec![(0, 5), (10, -7), (10, 0), (86_400, 3)],
            vec![(0, -1_000_000_000_000), (86_400, -1)],
            vec![(0, 1), (86_400, i128::from(i64::MAX))],
        ] {
            let svg =
                plot("a <test>", 86_400, &[Series { name: "x", points: &points, class: "a" }]);
            assert!(svg.contains("aria-label=\"a &lt;test&gt;\""));
            let path = svg.split("<path class=\"line a\" d=\"").nth(1).unwrap();
            let path = path.split('"').next().unwrap();
            assert_eq!(path.matches(['M', 'L']).count(), points.len());
            for point in path.split(['M', 'L']).skip(1) {
                let (x, y) = point.split_once(' ').unwrap();
                let whole = |text: &str| text.split('.').next().unwrap().parse::<i128>().unwrap();
                assert!(
                    (90..=710).contains(&whole(x)) && (10..=230).contains(&whole(y)),
                    "{point}"
                );
            }
        }
    }
}
