use super::*;

fn outcomes() -> Vec<Outcomes> {
    let check = |name, outcome, got: &str, want: &str| Check {
        name,
        outcome,
        got: got.to_owned(),
        want: want.to_owned(),
    };
    let cell = |cell, verdict| Outcomes {
        cell,
        verdict,
        checks: Vec::new(),
        took: Duration::from_millis(1_250),
        tries: 1,
        release: Some("6.12".to_owned()),
        last_lines: Vec::new(),
        log: None,
    };
    let mut failing = cell(Cell { cpus: 4, ..Cell::BASE }, Verdict::Fails);
    failing.checks = vec![
        check("init", Outcome::Holds, "reached", "reached"),
        check("end", Outcome::Fails, "\"<oops>\" & \u{1b}[0m\nmore", "]]> 'x'"),
        check("line", Outcome::Fails, "7 ns", "0 ns"),
    ];
    failing.last_lines = vec!["<&>\u{0}\u{fffe}".to_owned(), "second\tline".to_owned()];
    let skipped = Verdict::Skipped("no \"KVM\" <here>".to_owned());
    vec![cell(Cell::BASE, Verdict::Holds), failing, cell(Cell { tsc: true, ..Cell::BASE }, skipped)]
}

/// Path, attributes, text.
type Element = (String, Vec<(String, String)>, String);

/// Reads XML with elements, attributes in double quotes and text, and nothing
/// else; panics on what is not well formed.
fn read_xml(xml: &str) -> Vec<Element> {
    let unescape = |text: &str| {
        assert!(!text.contains('<'), "{text}");
        let whole = text
            .replace("&lt;", "\u{1}")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&amp;", "\u{2}");
        assert!(!whole.contains('&'), "a bare ampersand: {text}");
        whole.replace('\u{1}', "<").replace('\u{2}', "&")
    };
    for c in xml.chars() {
        assert!(matches!(c, '\t' | '\n' | ' '..='\u{fffd}' | '\u{10000}'..), "{c:?}");
    }
    let mut rest = xml.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").unwrap();
    let mut elements: Vec<Element> = Vec::new();
    let mut open: Vec<(String, usize)> = Vec::new();
    loop {
        let at = rest.find('<').unwrap_or(rest.len());
        let (text, tail) = rest.split_at(at);
        if let Some((_, index)) = open.last() {
            elements[*index].2.push_str(&unescape(text));
        } else {
            assert_eq!(text.trim(), "");
        }
        if tail.is_empty() {
            break;
        }
        let end = tail.find('>').unwrap();
        let tag = &tail[1..end];
        rest = &tail[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().unwrap().0, name);
            continue;
        }
        let (tag, alone) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        let path: Vec<&str> = open.iter().map(|(name, _)| name.as_str()).chain([name]).collect();
        let mut found = Vec::new();
        while !attributes.trim().is_empty() {
            let (key, value) = attributes.split_once("=\"").unwrap();
            let (value, others) = value.split_once('"').unwrap();
            assert!(!value.contains('\n'));
            found.push((key.trim().to_owned(), unescape(value)));
            attributes = others;
        }
        elements.push((path.join("/"), found, String::new()));
        if !alone {
            open.push((name.to_owned(), elements.len() - 1));
        }
    }
    assert!(open.is_empty(), "{open:?}");
    elements
}

#[test]
fn junit_is_well_formed_and_says_all() {
    let elements = read_xml(&junit("a<b>&\"c\".img", &outcomes()));
    let attribute = |element: &Element, key: &str| {
        element.1.iter().find(|(name, _)| name == key).unwrap().1.clone()
    };
    let all = |path: &str| {
        elements.iter().filter(|element| element.0 == path).cloned().collect::<Vec<_>>()
    };
    let suite = &all("testsuites/testsuite")[0];
    assert_eq!(attribute(suite, "name"), "a<b>&\"c\".img");
    for (key, value) in
        [("tests", "3"), ("failures", "1"), ("errors", "0"), ("skipped", "1"), ("time", "3.750")]
    {
        assert_eq!(attribute(suite, key), value);
        assert_eq!(attribute(&all("testsuites")[0], key), value);
    }
    let cases = all("testsuites/testsuite/testcase");
    let names: Vec<String> = cases.iter().map(|case| attribute(case, "name")).collect();
    assert_eq!(names, ["base", "4-vcpus", "tsc"]);
    let failures = all("testsuites/testsuite/testcase/failure");
    assert_eq!(failures.len(), 1);
    assert!(attribute(&failures[0], "message").starts_with("end: \"<oops>\" & \u{fffd}[0m more"));
    assert!(failures[0].2.contains("wanted: ]]> 'x'\nline: 7 ns; wanted: 0 ns"));
    assert_eq!(
        attribute(&all("testsuites/testsuite/testcase/skipped")[0], "message"),
        "no \"KVM\" <here>"
    );
    assert_eq!(
        all("testsuites/testsuite/testcase/system-out")[0].2,
        "<&>\u{fffd}\u{fffd}\nsecond\tline"
    );
    assert_eq!(all("testsuites/testsuite/testcase/properties/property").len(), 3 * 7);
}

#[test]
fn json_says_all() {
    let text = json("vmlinuz", &outcomes()).to_string();
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&value["hold"], &value["fail"], &value["skipped"]),
        (&json!(1), &json!(1), &json!(1))
    );
    assert_eq!(value["release"], "6.12");
    let cells = value["cells"].as_array().unwrap();
    assert_eq!(cells[1]["name"], "4-vcpus");
    assert_eq!(cells[1]["settings"]["cpus"], "4");
    assert_eq!(cells[1]["verdict"], "fails");
    assert_eq!(cells[1]["milliseconds"], 1250);
    assert_eq!(cells[1]["checks"][2]["got"], "7 ns");
    assert_eq!(cells[2]["reason"], "no \"KVM\" <here>");
    assert_eq!(cells[0]["reason"], Value::Null);
}

#[test]
fn only_what_fails_is_a_fault() {
    let faults: Vec<String> = outcomes()[1].faults().collect();
    assert_eq!(faults.len(), 2);
    assert_eq!(faults[1], "line: 7 ns; wanted: 0 ns");
}
