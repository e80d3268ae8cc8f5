//! Promise: the control socket answers as `docs/openapi.yaml` says, survives
//! whatever is written to it, and a pause stops every vCPU.
//!
//! The tests that need a KVM are ignored unless asked for; `scripts/test` runs
//! them on this machine, where it has one, and in the nested host.

mod api {
    pub mod client;
    pub mod machine;
}

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use api::client::{Answer, request, send};
use api::machine::{Machine, kvm_xen};
use kvm_xen::vmm::api::routes::{ROUTES, Saved};
use kvm_xen::vmm::clock_metrics::ClockMetrics;
use kvm_xen::vmm::control::Status;
use kvm_xen::vmm::migrate::Progress;
use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

fn openapi() -> Yaml {
    // Built in: in the nested host there are no sources.
    YamlLoader::load_from_str(include_str!("../docs/openapi.yaml")).expect("YAML").remove(0)
}

fn keys(yaml: &Yaml) -> Vec<String> {
    let hash = yaml.as_hash().unwrap_or_else(|| panic!("no mapping: {yaml:?}"));
    hash.keys().map(|key| key.as_str().expect("a name").to_owned()).collect()
}

#[test]
fn the_openapi_file_has_the_routes_and_no_others() {
    let file = openapi();
    assert_eq!(file["openapi"].as_str(), Some("3.1.0"));
    let mut told: Vec<(String, String)> = Vec::new();
    for path in keys(&file["paths"]) {
        for method in keys(&file["paths"][path.as_str()]) {
            let operation = &file["paths"][path.as_str()][method.as_str()];
            assert!(!operation["responses"]["200"].is_badvalue(), "{method} {path}");
            assert!(operation["operationId"].as_str().is_some(), "{method} {path}");
            told.push((method.to_uppercase(), path.clone()));
        }
    }
    let mut there: Vec<_> =
        ROUTES.iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
    told.sort();
    there.sort();
    assert_eq!(told, there);
}

/// Names and kinds of what is sent, against the schema.
fn agrees(schema: &str, value: &Value) {
    let file = openapi();
    let schema = &file["components"]["schemas"][schema];
    let fields: &Map<String, Value> = value.as_object().expect("an object");
    let mut told = keys(&schema["properties"]);
    let mut required: Vec<String> = schema["required"]
        .as_vec()
        .expect("a list")
        .iter()
        .map(|name| name.as_str().expect("a name").to_owned())
        .collect();
    let mut there: Vec<String> = fields.keys().cloned().collect();
    told.sort();
    required.sort();
    there.sort();
    assert_eq!(told, there);
    assert_eq!(required, there);
    for (name, value) in fields {
        let property = &schema["properties"][name.as_str()];
        let kinds = match &property["type"] {
            Yaml::Array(kinds) => kinds.iter().filter_map(Yaml::as_str).collect(),
            kind => vec![kind.as_str().expect("a type")],
        };
        let kind = match value {
            Value::Null => "null",
            Value::String(_) => "string",
            Value::Number(_) => "integer",
            other => panic!("{name}: {other}"),
        };
        assert!(kinds.contains(&kind), "{name} is {kind}");
        if let (Some(text), Yaml::Array(words)) = (value.as_str(), &property["enum"]) {
            assert!(words.iter().any(|word| word.as_str() == Some(text)), "{name} is {text}");
        }
    }
}

#[test]
fn the_openapi_schemas_have_the_fields() {
    agrees("ClockMetrics", &serde_json::to_value(ClockMetrics::default()).expect("JSON"));
    let known = ClockMetrics { wallclock_error_ns: Some(1), ..ClockMetrics::default() };
    agrees("ClockMetrics", &serde_json::to_value(known).expect("JSON"));
    let status = Status {
        clock_mode: "owned".to_owned(),
        hypercall_mode: "port-io".to_owned(),
        ..Status::default()
    };
    agrees("Status", &serde_json::to_value(status).expect("JSON"));
    agrees("Progress", &serde_json::to_value(Progress::default()).expect("JSON"));
    agrees("Saved", &serde_json::to_value(Saved::default()).expect("JSON"));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_machine_is_saved_running_and_paused_and_ends_by_it() {
    let machine = Machine::start(2, 60);
    machine.await_work();
    let directory = tempfile::tempdir().expect("a directory");
    let put = |path: &str, body: &str| {
        let length = body.len();
        let text = format!(
            "PUT {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        send(&machine.socket, text.as_bytes()).expect("an answer")
    };
    let save = |name: &str, go_on: bool| {
        let file = directory.path().join(name);
        let body = serde_json::json!({ "file": file, "go_on": go_on }).to_string();
        let answer = put("/v1/save", &body);
        assert_eq!(answer.status, 200, "{name}: {}", answer.body);
        let saved: Value = serde_json::from_str(&answer.body).expect("JSON");
        agrees("Saved", &saved);
        let bytes = std::fs::metadata(&file).expect("the file").len();
        assert_eq!(saved["bytes"].as_u64(), Some(bytes));
        assert!(saved["bytes_beyond_memory"].as_u64() < Some(256 << 10), "{saved}");
    };
    save("running", true);
    machine.await_work();
    assert_eq!(put("/v1/pause", "").status, 200);
    // Twice: its threads stand where they stood.
    save("paused", true);
    save("paused-again", true);
    assert_eq!(machine.get("/v1/status")["state"], "paused");
    let refused = [
        ("/v1/save", "", 400),
        ("/v1/save", "{\"file\": 1}", 400),
        ("/v1/save", "{\"file\": \"/none/x\"}", 500),
        ("/v1/resume", "{\"anew\": true}", 400),
        ("/v1/suspend", "", 409),
    ];
    for (path, body, status) in refused {
        let answer = put(path, body);
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
    }
    assert_eq!(put("/v1/resume", "{}").status, 200);
    machine.await_work();
    // No guest of Linux: it does not offer to suspend itself.
    assert_eq!(put("/v1/suspend", "").status, 409);
    save("last", false);
    machine.ends_well();
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_machine_tells_of_itself() {
    let machine = Machine::start(2, 2);
    let file = std::fs::symlink_metadata(&machine.socket).expect("the socket");
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);

    let status = machine.get("/v1/status");
    agrees("Status", &status);
    assert_eq!((&status["state"], &status["vcpus"]), (&"running".into(), &2.into()));
    assert_eq!(status["memory_bytes"], 64 << 20);
    let (first, second) = (machine.get("/v1/clock"), machine.get("/v1/clock"));
    agrees("ClockMetrics", &first);
    for field in ["host_tsc", "guest_tsc", "system_time_ns"] {
        assert!(first[field].as_u64() < second[field].as_u64(), "{field}: {first} {second}");
    }
    let metrics = request(&machine.socket, "GET", "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.head.contains("Content-Type: text/plain; version=0.0.4"), "{}", metrics.head);
    assert!(metrics.body.contains("\nkvm_xen_memory_bytes 67108864\n"), "{}", metrics.body);
    let head = request(&machine.socket, "HEAD", "/metrics");
    assert_eq!((head.status, head.body.as_str()), (200, ""));

    let socket = machine.socket.clone();
    let console = machine.ends_well();
    assert!(!socket.exists(), "the socket's file is left");
    assert!(console.contains("backward=0"), "{console}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_pause_stops_every_vcpu_and_the_clock_runs_on() {
    let machine = Machine::start(2, 6);
    machine.await_work();
    let put = |path| {
        let answer = request(&machine.socket, "PUT", path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let status: Value = serde_json::from_str(&answer.body).expect("JSON");
        status["state"].as_str().expect("a state").to_owned()
    };
    for _ in 0..5 {
        assert_eq!(put("/v1/pause"), "paused");
        let clock = machine.get("/v1/clock");
        let spent = machine.vcpu_work_ns();
        assert_eq!(spent.len(), 2);
        thread::sleep(Duration::from_millis(300));
        // What a thread did on its way to its rest, and nothing else.
        let worked = machine.vcpu_work_ns().into_iter().zip(spent).map(|(now, then)| now - then);
        for worked_ns in worked {
            assert!(worked_ns < 5_000_000, "a vCPU worked for {worked_ns} ns of the pause");
        }
        assert_eq!(put("/v1/pause"), "paused");
        let later = machine.get("/v1/clock");
        let passed = later["system_time_ns"].as_u64().zip(clock["system_time_ns"].as_u64());
        let passed = passed.map(|(later, before)| later - before).expect("numbers");
        assert!(passed >= 300_000_000, "system time stood: {passed} ns");
        assert_eq!(put("/v1/resume"), "running");
        assert_eq!(put("/v1/resume"), "running");
        machine.await_work();
    }
    // What the guest saw of it: no step back, no page rewritten.
    let console = machine.ends_well();
    assert!(console.contains("backward=0") && console.contains("cross_backward=0"), "{console}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_machine_that_is_paused_before_it_ends_ends_all_the_same() {
    // Many in a row, from several clients at once, up to the guest's last moment.
    let machine = Machine::start(2, 1);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let socket = machine.socket.clone();
            thread::spawn(move || {
                let mut turns = 0u32;
                while send(&socket, b"PUT /v1/pause HTTP/1.1\r\nConnection: close\r\n\r\n")
                    .is_some()
                    && send(&socket, b"PUT /v1/resume HTTP/1.1\r\nConnection: close\r\n\r\n")
                        .is_some()
                {
                    turns += 1;
                }
                turns
            })
        })
        .collect();
    let console = machine.ends_well();
    let turns: u32 = clients.into_iter().map(|client| client.join().expect("a thread")).sum();
    assert!(turns > 10, "{turns} turns");
    assert!(console.contains("backward=0"), "{console}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn bad_requests_get_their_status_and_harm_nobody() {
    let machine = Machine::start(1, 600);
    let huge_head = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let huge_body =
        format!("PUT /v1/pause HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n{}", "x".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
    let cases: [(&str, u16); 10] = [
        ("GET /nowhere HTTP/1.1\r\n\r\n", 404),
        ("GET /v1/pause HTTP/1.1\r\n\r\n", 405),
        ("DELETE /v1/status HTTP/1.1\r\n\r\n", 405),
        ("\u{1}\u{2}\u{3}\r\n\r\n", 400),
        ("PUT /v1/pause HTTP/1.1\r\nContent-Length: ten\r\n\r\n", 400),
        ("PUT /v1/pause HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
        (&huge_head, 431),
        (&huge_body, 413),
        (&many, 431),
        ("GET /v1/sta", 408),
    ];
    let begin = Instant::now();
    for (bytes, status) in cases {
        let answer = send(&machine.socket, bytes.as_bytes());
        let answer =
            answer.unwrap_or_else(|| panic!("no answer to {}", &bytes[..bytes.len().min(40)]));
        assert_eq!(answer.status, status, "{}", answer.body);
        let error: Value = serde_json::from_str(&answer.body).expect("JSON");
        assert!(error["error"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
        assert_eq!(answer.head.contains("Allow: "), status == 405, "{}", answer.head);
    }
    assert!(begin.elapsed() < Duration::from_secs(20));
    // More clients than there may be: the others are told, none hangs.
    let idle: Vec<_> = (0..16).map(|_| machine.connect()).collect();
    let begin = Instant::now();
    loop {
        match send(&machine.socket, b"GET /v1/status HTTP/1.1\r\nConnection: close\r\n\r\n") {
            Some(Answer { status: 503, .. }) => break,
            // A thread of an earlier client had not ended yet, or a connection broke.
            _ => assert!(begin.elapsed() < Duration::from_secs(10), "17 clients"),
        }
    }
    drop(idle);
    let begin = Instant::now();
    while request(&machine.socket, "GET", "/v1/status").status != 200 {
        assert!(begin.elapsed() < Duration::from_secs(10), "nobody may connect any more");
    }
    // Another machine can not take the socket away.
    let other = machine.other_on_the_same_socket();
    let error = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(1), "{error}");
    assert!(error.contains("another process listens there"), "{error}");
    assert_eq!(request(&machine.socket, "GET", "/v1/status").status, 200);
    // One that was killed leaves its file, and the next one takes its place.
    let (socket, other) = machine.killed_and_another_on_its_socket();
    assert_eq!(other.status.code(), Some(0), "{}", String::from_utf8_lossy(&other.stderr));
    assert!(!socket.exists());
}

#[test]
#[ignore = "needs /dev/kvm"]
fn watch_and_verify_read_a_running_machine() {
    let machine = Machine::start(1, 600);
    let socket = machine.socket.to_str().expect("a plain path");
    let watch = Command::new(kvm_xen())
        .args(["clock", "watch", socket, "--seconds", "2"])
        .output()
        .expect("the binary runs");
    let text = String::from_utf8_lossy(&watch.stdout).into_owned();
    assert!(watch.status.success(), "{text}{}", String::from_utf8_lossy(&watch.stderr));
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.lines().all(|line| line.starts_with("state=running ")), "{text}");
    let verify = Command::new(kvm_xen())
        .args(["clock", "verify", socket, "--seconds", "1"])
        .output()
        .expect("the binary runs");
    let text = String::from_utf8_lossy(&verify.stdout).into_owned();
    // A machine without a VMClock page has nothing that could be verified, and
    // that is no success.
    let published = machine.get("/v1/clock")["page_updates"].as_u64() > Some(0);
    assert_eq!(verify.status.code(), Some(i32::from(!published)), "{text}");
    assert_eq!(text.contains("no bound published"), !published, "{text}");
    let samples = text.lines().find(|line| line.trim_start().starts_with("samples"));
    let samples: u32 = samples
        .and_then(|line| line.split_whitespace().nth(2)?.parse().ok())
        .unwrap_or_else(|| panic!("{text}"));
    assert!((10..=101).contains(&samples), "{text}");
}
