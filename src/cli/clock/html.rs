//! The report: one file with its plots in it, which asks nobody for anything.

use std::fmt::Write as _;

use super::lab::{COLUMNS, Machine, cells, wallclock_cells};
use super::plot::{Series, escape, plot};
use crate::clock::lab::Track;

/// Colours that can be told apart on light and on dark, also by their dashes.
const STYLE: &str = "\
:root{color-scheme:light dark;--a:#7a7a7a;--b:#d1495b;--c:#c98a1b;--ours:#2a7fd4;--page:#2e9e6b;\
--rule:#8884}\
body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:3rem}h3{font-size:1rem;margin-top:2rem}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid var(--rule)}\
th:first-child,td:first-child{text-align:left}\
svg{width:100%;height:auto;overflow:visible}\
svg text{font-size:11px;fill:currentColor}svg .y{text-anchor:end;dominant-baseline:middle}\
svg .x{text-anchor:middle}\
.grid,.zero{stroke:var(--rule);fill:none}.zero{stroke:currentColor;stroke-width:.6}\
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}\
.a{stroke:var(--a);stroke-dasharray:2 3}.b{stroke:var(--b)}\
.c{stroke:var(--c);stroke-dasharray:6 3}.ours{stroke:var(--ours);stroke-width:2.6}\
.page{stroke:var(--page);stroke-dasharray:8 2 2 2}\
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.5rem;font-size:.85rem}\
.legend svg{width:2rem;height:.6rem;vertical-align:middle}\
@media print{body{max-width:none}}";

/// What the letters mean.
const LEGEND: &str = "\
<p>Errors against the exact rate of the host's TSC, or against UTC for the wallclocks; positive \
is fast. <b>A</b> is the host's CLOCK_MONOTONIC_RAW, to which KVM returns at each masterclock \
update. <b>B</b> is what a guest of KVM reads: its TSC by the multiplier that KVM publishes. \
<b>C</b> is KVM_GET_CLOCK: the host's TSC by a multiplier of its own. <b>Ours</b> is the line that \
kvm-xen fixes when it makes a guest; its page has a multiplier of 32 bits, whose rounding is \
known.</p>";

/// The report of all machines.
pub fn report(machines: &[Machine]) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>Clock laboratory</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>Clock laboratory</h1>\n{LEGEND}\n"
    );
    for machine in machines {
        section(&mut html, machine);
    }
    let _ = writeln!(
        html,
        "<p>kvm-xen {}; computed from KVM's own arithmetic, in integers.</p>\n</body>\n</html>",
        env!("CARGO_PKG_VERSION")
    );
    html
}

fn section(html: &mut String, machine: &Machine) {
    let seconds = machine.scenario.seconds;
    let _ = writeln!(
        html,
        "<section>\n<h2>{}</h2>\n<p>{}</p>",
        escape(&machine.title()),
        escape(&machine.history())
    );
    let tracks = machine.tracks();
    table(html, "system time", &tracks, cells);
    let classes = ["a", "b", "c", "ours", "page"];
    let lines = |from: usize, to: usize| -> Vec<Series<'_>> {
        tracks
            .iter()
            .zip(classes)
            .skip(from)
            .take(to - from)
            .map(|((name, track), class)| Series { name, points: &track.points, class })
            .collect()
    };
    html.push_str("<h3>KVM's three clocks and ours</h3>\n");
    html.push_str(&plot("Error of KVM's clocks and ours over time", seconds, &lines(0, 4)));
    html.push_str("<h3>Ours alone</h3>\n");
    html.push_str(&plot("Error of our line and page over time", seconds, &lines(3, 5)));
    html.push_str("<h3>Wallclock from UTC</h3>\n");
    let wallclocks = machine.wallclocks();
    table(html, "wallclock", &wallclocks, wallclock_cells);
    let [once, ours] = wallclocks.map(|(name, track)| {
        let class = if name == "ours" { "ours" } else { "b" };
        Series { name, points: &track.points, class }
    });
    html.push_str(&plot("Error of the wallclocks over time", seconds, &[once, ours]));
    html.push_str(
        "<h3>An hour at 500 ppm</h3>\n<p>NTP makes the host's clock 500 ppm fast. Run through the \
         code that serves guests, against a simulated host, which is read every millisecond.</p>\n\
         <table><tr><th>wallclock</th><th>from UTC</th></tr>\n",
    );
    for (name, value) in machine.slew_rows() {
        let _ = writeln!(html, "<tr><td>{}</td><td>{}</td></tr>", escape(&name), escape(&value));
    }
    html.push_str("</table>\n</section>\n");
}

fn table(
    html: &mut String,
    what: &str,
    tracks: &[(&str, &Track)],
    cells: fn(&Track) -> [String; 5],
) {
    let _ = write!(html, "<table>\n<tr><th>{what}</th>");
    for column in COLUMNS {
        let _ = write!(html, "<th>{column}</th>");
    }
    html.push_str("</tr>\n");
    for (name, track) in tracks {
        let _ = write!(html, "<tr><td>{}</td>", escape(name));
        for cell in cells(track) {
            let _ = write!(html, "<td>{}</td>", escape(&cell));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table>\n");
}
