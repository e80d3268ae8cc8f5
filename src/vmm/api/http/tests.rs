//! Requests as they come: whole, in pieces, several at once, and those that are
//! none.

use std::thread;

use super::*;

const SHORT: Limits = Limits {
    request: Duration::from_millis(100),
    response: Duration::from_millis(100),
    idle: Duration::from_millis(100),
};

fn pair() -> (UnixStream, Connection) {
    let (client, server) = UnixStream::pair().unwrap();
    (client, Connection::new(server, SHORT))
}

fn received(bytes: &[u8]) -> Result<Request, NoRequest> {
    let (mut client, mut connection) = pair();
    let bytes = bytes.to_vec();
    // More than the socket holds may be written, and not all may be read.
    let writer = thread::spawn(move || {
        let _ = client.write_all(&bytes);
        client
    });
    let request = connection.receive();
    drop(connection);
    writer.join().unwrap();
    request
}

fn status(bytes: &[u8]) -> u16 {
    match received(bytes) {
        Err(NoRequest::Refused(response)) => response.status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn whole_requests() {
    let request =
        received(b"PUT /v1/pause?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}").unwrap();
    assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/v1/pause"));
    assert_eq!((request.body.as_slice(), request.keep_alive), (b"{}".as_slice(), true));
    for (head, keep_alive) in [
        ("HTTP/1.0\r\n", false),
        ("HTTP/1.0\r\nConnection: keep-alive\r\n", true),
        ("HTTP/1.1\r\nconnection: Foo, Close\r\n", false),
    ] {
        let request = received(format!("GET / {head}\r\n").as_bytes()).unwrap();
        assert_eq!(request.keep_alive, keep_alive, "{head}");
    }
}

#[test]
fn several_at_once_and_in_pieces() {
    let (mut client, mut connection) = pair();
    let two = b"PUT /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyzGET /b HTTP/1.1\r\n\r\n";
    let writer = thread::spawn(move || {
        for byte in two {
            client.write_all(&[*byte]).unwrap();
        }
        client
    });
    let first = connection.receive().unwrap();
    let second = connection.receive().unwrap();
    assert_eq!((first.path.as_str(), first.body.as_slice()), ("/a", b"xyz".as_slice()));
    assert_eq!((second.path.as_str(), second.body.len()), ("/b", 0));
    drop(writer.join().unwrap());
    assert_eq!(connection.receive(), Err(NoRequest::Gone));
}

#[test]
fn what_is_no_request() {
    let long_head = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MOST_HEAD));
    let endless = format!("GET /{}", "x".repeat(MOST_HEAD + 5_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MOST_HEADERS + 1));
    for (bytes, expected) in [
        ("\u{0}\u{1}garbage\r\n\r\n", 400),
        ("GET\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\n\r\n", 505),
        (long_head.as_str(), 431),
        (endless.as_str(), 431),
        (many.as_str(), 431),
        ("PUT / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", 413),
        ("PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413),
        ("PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        ("PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("PUT / HTTP/1.1\r\nContent-Length: \r\n\r\n", 400),
        ("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
    ] {
        assert_eq!(status(bytes.as_bytes()), expected, "{}", &bytes[..bytes.len().min(60)]);
    }
}

#[test]
fn slow_ones() {
    let (mut client, mut connection) = pair();
    client.write_all(b"GET / HT").unwrap();
    match connection.receive() {
        Err(NoRequest::Refused(response)) => assert_eq!(response.status, 408),
        other => panic!("{other:?}"),
    }
    // One that says nothing at all is let go.
    let (_client, mut connection) = pair();
    assert_eq!(connection.receive(), Err(NoRequest::Gone));
    // Byte after byte does not help.
    let (mut client, mut connection) = pair();
    let drip = thread::spawn(move || {
        while client.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    });
    let begin = Instant::now();
    assert!(matches!(connection.receive(), Err(NoRequest::Refused(_))));
    assert!(begin.elapsed() < Duration::from_secs(5));
    drop(connection);
    drip.join().unwrap();
}

#[test]
fn responses() {
    let (mut client, mut connection) = pair();
    let mut response = Response::error(405, "no");
    response.allow = Some("GET, PUT".to_owned());
    connection.send(&response, false, false).unwrap();
    connection.send(&response, true, true).unwrap();
    drop(connection);
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    let one = "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: application/json\r\n\
               Content-Length: 14\r\nCache-Control: no-store\r\nAllow: GET, PUT\r\n";
    assert_eq!(text, format!("{one}Connection: close\r\n\r\n{{\"error\":\"no\"}}{one}\r\n"));
}
