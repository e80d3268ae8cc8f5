//! The C side: the installed headers, a compiler, and just enough parsing to list their names.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use xen_abi::layout::MODULES;

const INCLUDE: &str = "/usr/include/xen";

/// The guest's word size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    B64,
    B32,
}

/// What the compiler said.
pub struct Verdict {
    pub accepted: bool,
    pub messages: String,
}

/// The text of an installed header.
pub fn read_header(name: &str) -> String {
    let path = Path::new(INCLUDE).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "cannot read {}: {error}: install the Xen headers: apt-get install -y libxen-dev",
            path.display()
        )
    })
}

/// Includes all mirrored headers. `__XEN_TOOLS__` selects the newest interface and shows what only
/// privileged guests see.
fn prelude() -> String {
    let mut text = "#define __XEN_TOOLS__ 1\n#include <stdint.h>\n".to_owned();
    for module in MODULES.iter().filter(|module| !module.header.is_empty()) {
        text += &format!("#include <xen/{}>\n", module.header);
    }
    text
}

/// Runs the compiler on the prelude and `body`. Freestanding: no C library is needed, so `-m32`
/// works without 32-bit packages.
fn cc(bits: Bits, mode: &[&str], body: &str) -> Output {
    read_header("xen.h"); // names the package when it is missing
    let width = match bits {
        Bits::B64 => "-m64",
        Bits::B32 => "-m32",
    };
    let mut child = Command::new("cc")
        .args(["-std=gnu11", "-ffreestanding", "-fmax-errors=0", "-x", "c", width])
        .args(mode)
        .arg("-")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run cc: {error}: apt-get install -y gcc"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all((prelude() + body).as_bytes()).expect("cc reads its input");
    drop(stdin);
    child.wait_with_output().expect("cc ends")
}

/// Checks `body` after the headers.
pub fn compile(bits: Bits, body: &str) -> Verdict {
    let output = cc(bits, &["-fsyntax-only"], body);
    Verdict {
        accepted: output.status.success(),
        messages: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The headers after preprocessing.
pub fn preprocess(bits: Bits) -> String {
    let output = cc(bits, &["-E", "-P"], "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("the headers are text")
}

/// Names of the macros without arguments that have a value.
pub fn constants(header: &str) -> BTreeSet<String> {
    header
        .lines()
        .filter_map(|line| {
            let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("define")?;
            let rest = rest.trim_start();
            let end = rest.find(|c: char| !is_word(c))?;
            let (name, value) = rest.split_at(end);
            let value = value.trim_start_matches([' ', '\t']);
            let has_value = !rest[end..].starts_with('(')
                && !value.is_empty()
                && !value.starts_with("/*")
                && value != "\\";
            has_value.then(|| name.to_owned())
        })
        .collect()
}

/// `keyword name` of each definition of a structure or union with a tag.
pub fn tagged(text: &str, keyword: &str) -> BTreeSet<String> {
    definitions(text, keyword)
        .filter(|(tag, _)| !tag.is_empty())
        .map(|(tag, _)| format!("{keyword} {tag}"))
        .collect()
}

/// Names of all enumerators.
pub fn enumerators(text: &str) -> BTreeSet<String> {
    definitions(text, "enum")
        .flat_map(|(_, body)| body.split('}').next().unwrap_or_default().split(','))
        .map(|item| item.trim().chars().take_while(|c| is_word(*c)).collect::<String>())
        .filter(|name| !name.is_empty())
        .collect()
}

/// Tag (empty for none) and the text after the brace of each `keyword tag { …`.
fn definitions<'a>(text: &'a str, keyword: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    text.match_indices(keyword).filter_map(move |(start, _)| {
        let rest = text[start..].strip_prefix(keyword)?;
        let is_keyword = !text[..start].ends_with(is_word) && !rest.starts_with(is_word);
        let (tag, body) = rest.split_once('{')?;
        let tag = tag.trim();
        (is_keyword && tag.chars().all(is_word)).then_some((tag, body))
    })
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}
