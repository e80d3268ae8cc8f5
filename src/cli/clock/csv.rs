//! The series as comma-separated values: one row for each moment, all clocks in
//! it, errors in ns. A masterclock update has two rows, before and after it.

use std::fmt::Write as _;

use super::lab::Machine;

const HEADER: &str = "host_khz,guest_khz,seconds,a_ns,b_ns,c_ns,ours_exact_ns,ours_page_ns,\
                      ours_khz_page_ns,wallclock_once_ns,wallclock_ours_ns";

/// All machines, one after the other.
pub fn series(machines: &[Machine]) -> String {
    let mut text = format!("{HEADER}\n");
    for Machine { scenario, report, .. } in machines {
        let tracks = [
            &report.a,
            &report.b,
            &report.c,
            &report.ours_tai,
            &report.ours,
            &report.ours_khz,
            &report.wallclock_kvm,
            &report.wallclock_ours,
        ];
        for (index, (seconds, _)) in report.a.points.iter().enumerate() {
            let _ = write!(text, "{},{},{seconds}", scenario.host_khz, scenario.guest_khz);
            for track in tracks {
                // All series have the same moments.
                let error = track.points.get(index).map_or(0, |(_, error)| *error);
                let _ = write!(text, ",{error}");
            }
            text.push('\n');
        }
    }
    text
}
