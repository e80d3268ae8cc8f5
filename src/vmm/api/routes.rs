//! What can be asked of a machine. A new route is a line of [`ROUTES`], its
//! handler, and its path in `docs/openapi.yaml`, which a test holds against
//! this table.

use std::sync::Arc;

use super::http::{Request, Response};
use super::prometheus;
use crate::vmm::control::Control;
use crate::vmm::migrate::MigrateError;

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
        handler: |control, _| {
            control.resume();
            status(control)
        },
    },
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
}

fn migrate(control: &Arc<Control>, request: &Request) -> Response {
    let refused =
        |status, error: &dyn std::fmt::Display| Response::error(status, &error.to_string());
    let to = match serde_json::from_slice::<Destination>(&request.body) {
        Ok(destination) => destination.to.parse(),
        Err(error) => return refused(400, &format_args!("not {{\"to\": ADDRESS}}: {error}")),
    };
    match to {
        Err(error) => refused(400, &error),
        Ok(to) => match control.migrate(to) {
            Ok(()) => Response::json(&control.migration().progress()),
            Err(error @ MigrateError::Thread(_)) => refused(503, &error),
            Err(error) => refused(409, &error),
        },
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
