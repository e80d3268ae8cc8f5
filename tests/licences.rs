//! Promise: everything that is linked or run may be used under a licence that
//! lets anybody use, change and pass it on.

use std::process::Command;

use serde_json::Value;
use spdx::{Expression, LicenseReq};

/// What a dependency may offer; one of its alternatives must be among these.
const ALLOWED: [&str; 10] = [
    "Apache-2.0",
    "MIT",
    "MIT-0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "0BSD",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
];

fn is_allowed(licence: &LicenseReq) -> bool {
    licence.license.id().is_some_and(|id| ALLOWED.contains(&id.name))
}

/// Whether the expression can be met with allowed licences alone.
fn is_free(expression: &str) -> bool {
    // "MIT/Apache-2.0" is how some older crates write OR.
    let expression = expression.replace('/', " OR ");
    Expression::parse(&expression).is_ok_and(|parsed| parsed.evaluate(is_allowed))
}

#[test]
fn every_dependency_is_free() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    assert!(packages.len() > 20, "only {} packages", packages.len());
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(is_free))
        .map(|package| {
            format!("{} {}: {}", package["name"], package["version"], package["license"])
        })
        .collect();
    assert!(refused.is_empty(), "licences that are not allowed:\n{}", refused.join("\n"));
}

#[test]
fn the_check_can_refuse() {
    for free in ["MIT OR GPL-3.0-only", "(MIT OR Apache-2.0) AND Unicode-3.0", "MIT/Apache-2.0"] {
        assert!(is_free(free), "{free}");
    }
    for bound in ["GPL-2.0-only", "MIT AND GPL-3.0-only", "SSPL-1.0", "", "nothing"] {
        assert!(!is_free(bound), "{bound}");
    }
}
