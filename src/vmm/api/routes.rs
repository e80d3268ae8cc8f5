//! What can be asked of a machine. A new route is a line of [`ROUTES`], its
//! handler, and its path in `docs/openapi.yaml`, which a test holds against
//! this table.

use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::http::{Request, Response};
use super::prometheus;
use crate::vmm::control::{Control, ControlSaveError};
use crate::vmm::handover::{Handover, HandoverMode};
use crate::vmm::migrate::{MigrateError, MovePlace};
use crate::vmm::save::SaveError;
use crate::vmm::suspend::SuspendError;
use crate::xen::Resumed;

/// One thing that can be asked.
pub struct Route {
    /// `GET` or `PUT`; `HEAD` goes with `GET`.
    pub method: &'static str,
    /// Without parameters.
    pub path: &'static str,
    /// Answers it. It may wait, for a bounded time: each client has a thread.
    pub handler: fn(&Arc<Control>, &Request) -> Response,
}

/// All of them.
pub static ROUTES: &[Route] = &[
    Route { method: "GET", path: "/v1/status", handler: |control, _| status(control) },
    Route {
        method: "GET",
        path: "/v1/clock",
        handler: |control, _| Response::json(&control.clock_metrics()),
    },
    Route { method: "GET", path: "/metrics", handler: |control, _| metrics(control) },
    Route { method: "PUT", path: "/v1/pause", handler: |control, _| pause(control) },
    Route {
        method: "PUT",
        path: "/v1/resume",
        handler: |control, request| resume(control, request),
    },
    Route { method: "PUT", path: "/v1/suspend", handler: |control, _| suspend(control) },
    Route { method: "PUT", path: "/v1/save", handler: |control, request| save(control, request) },
    Route {
        method: "GET",
        path: "/v1/migrate",
        handler: |control, _| Response::json(&control.migration().tell()),
    },
    Route { method: "PUT", path: "/v1/migrate", handler: migrate },
    Route {
        method: "PUT",
        path: "/v1/migrate/cancel",
        handler: |control, _| {
            control.migration().cancel();
            Response::json(&control.migration().progress())
        },
    },
    Route {
        method: "PUT",
        path: "/v1/migrate/take-back",
        handler: |control, _| match control.migration().take_back() {
            Ok(()) => Response::json(&control.migration().progress()),
            Err(error) => Response::error(409, &error.to_string()),
        },
    },
];

/// The answer to `request`.
pub fn answer(control: &Arc<Control>, request: &Request) -> Response {
    let method = if request.method == "HEAD" { "GET" } else { request.method.as_str() };
    let here = || ROUTES.iter().filter(|route| route.path == request.path);
    if let Some(route) = here().find(|route| route.method == method) {
        return (route.handler)(control, request);
    }
    let mut allow: Vec<&str> = here().map(|route| route.method).collect();
    if allow.is_empty() {
        return Response::error(404, "no such path; docs/openapi.yaml lists them");
    }
    if allow.contains(&"GET") {
        allow.push("HEAD");
    }
    let allow = allow.join(", ");
    let mut response = Response::error(405, &format!("this path takes {allow}"));
    response.allow = Some(allow);
    response
}

fn status(control: &Control) -> Response {
    Response::json(&control.status())
}

fn pause(control: &Control) -> Response {
    match control.pause() {
        Ok(()) => status(control),
        Err(error) => Response::error(503, &error.to_string()),
    }
}

/// Where to.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Destination {
    to: String,
    /// With a port: what this process reads.
    #[serde(default)]
    tls_dir: Option<PathBuf>,
    /// Whether the guest is asked to gather its vCPUs.
    #[serde(default)]
    handover: HandoverMode,
}

fn migrate(control: &Arc<Control>, request: &Request) -> Response {
    let refused =
        |status, error: &dyn std::fmt::Display| Response::error(status, &error.to_string());
    let (to, handover) = match serde_json::from_slice::<Destination>(&request.body) {
        Ok(destination) => {
            let place = MovePlace::new(&destination.to, destination.tls_dir.as_deref());
            (place, destination.handover)
        }
        Err(error) => return refused(400, &format_args!("not {{\"to\": ADDRESS}}: {error}")),
    };
    match to {
        Err(error) => refused(400, &error),
        Ok(to) => match control.migrate(to, handover) {
            Ok(()) => Response::json(&control.migration().progress()),
            Err(error @ MigrateError::Thread(_)) => refused(503, &error),
            Err(error) => refused(409, &error),
        },
    }
}

/// The body of `PUT /v1/resume`; none is as if empty.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResumeBody {
    /// A suspended guest goes on as if it had not suspended.
    #[serde(default)]
    cancelled: bool,
}

/// The body of `PUT /v1/save`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SaveBody {
    file: PathBuf,
    /// The guest goes on; without, the machine ends.
    #[serde(default)]
    go_on: bool,
    /// Whether the guest is asked to gather its vCPUs.
    #[serde(default)]
    handover: HandoverMode,
}

/// The answer to `PUT /v1/save`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Saved {
    /// Of the file.
    pub bytes: u64,
    /// Of the file, without guest memory.
    pub bytes_beyond_memory: u64,
    /// Pages of guest memory that are not zero.
    pub pages: u64,
    /// How long the guest stood for it.
    pub stopped_ns: u64,
    /// Whether it gathered its vCPUs for it.
    pub handover: Handover,
}

fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Response> {
    serde_json::from_slice(&request.body).map_err(|error| {
        Response::error(400, &format!("the body is not what this path takes: {error}"))
    })
}

fn suspend(control: &Control) -> Response {
    match control.suspend() {
        Ok(()) => status(control),
        Err(error @ SuspendError::Timeout(_)) => Response::error(503, &error.to_string()),
        Err(error) => Response::error(409, &error.to_string()),
    }
}

fn resume(control: &Control, request: &Request) -> Response {
    let wanted = match request.body.is_empty() {
        true => Ok(ResumeBody::default()),
        false => body::<ResumeBody>(request),
    };
    let how = match wanted {
        Ok(ResumeBody { cancelled: true }) => Resumed::Cancelled,
        Ok(ResumeBody { cancelled: false }) => Resumed::Anew,
        Err(response) => return response,
    };
    match control.go_on(how) {
        Ok(()) => status(control),
        Err(error) => Response::error(500, &error.to_string()),
    }
}

fn save(control: &Control, request: &Request) -> Response {
    let SaveBody { file, go_on, handover } = match body(request) {
        Ok(body) => body,
        Err(response) => return response,
    };
    match control.save(&file, handover, go_on) {
        Ok(report) => Response::json(&Saved {
            bytes: report.bytes,
            bytes_beyond_memory: report.beyond_memory,
            pages: report.pages,
            stopped_ns: u64::try_from(report.stopped_for.as_nanos()).unwrap_or(u64::MAX),
            handover: report.handover,
        }),
        Err(error @ (ControlSaveError::TooEarly | ControlSaveError::Save(SaveError::Stop(_)))) => {
            Response::error(503, &error.to_string())
        }
        Err(error @ ControlSaveError::Save(SaveError::Domain(_) | SaveError::Handover(_))) => {
            Response::error(409, &error.to_string())
        }
        Err(error) => Response::error(500, &error.to_string()),
    }
}

fn metrics(control: &Control) -> Response {
    Response {
        status: 200,
        content_type: prometheus::CONTENT_TYPE,
        body: prometheus::text(&control.status(), &control.clock_metrics()).into_bytes(),
        allow: None,
    }
}
