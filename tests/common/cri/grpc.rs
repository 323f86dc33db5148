//! A client of the CRI: unary gRPC calls over h2, the messages as JSON by tests/data/cri.proto. The crate k8s-cri would
//! want protoc at build time and bring tonic, hyper and axum; what is used of gRPC is this one screen.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::protobuf::MessageDyn;
use containerd_shim_protos::protobuf::reflect::{FileDescriptor, ReflectValueRef};
use protobuf_json_mapping::{ParseOptions, PrintOptions};
use serde_json::Value;

use super::super::block_on;

/// How long a call may take that is done in milliseconds on a quiet machine.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// The refusal of a call (grpc: statuscodes.md).
#[derive(Debug)]
pub struct Status {
    /// DEADLINE_EXCEEDED and so on, as a number.
    pub code: u32,
    /// Its words, percent-encoded as they came.
    pub message: String,
}

/// DEADLINE_EXCEEDED
pub const DEADLINE_EXCEEDED: u32 = 4;
/// NOT_FOUND
pub const NOT_FOUND: u32 = 5;

/// The runtime service at a socket.
pub struct Client {
    socket: PathBuf,
    messages: FileDescriptor,
}

impl Client {
    /// One that calls `socket`; connects anew for each call, so that the server may be another process each time.
    pub fn new(socket: &Path) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
        let mut parser = protobuf_parse::Parser::new();
        let parsed = parser.pure().include(&dir).input(dir.join("cri.proto")).file_descriptor_set();
        let file = parsed.expect("tests/data/cri.proto").file.remove(0);
        let messages = FileDescriptor::new_dynamic(file, &[]).expect("tests/data/cri.proto");
        Self { socket: socket.into(), messages }
    }

    /// Calls `method`; the reply has every field, those with their default value too.
    pub fn call(&self, method: &str, request: &Value) -> Result<Value, Status> {
        let reply = self.call_message(method, request)?;
        let options = PrintOptions { proto_field_name: true, always_output_default_values: true, ..Default::default() };
        let json = protobuf_json_mapping::print_to_string_with_options(&*reply, &options).expect("a message as JSON");
        Ok(serde_json::from_str(&json).expect("JSON"))
    }

    /// The same, for a reply of which fields are bytes (`bytes_of`).
    pub fn call_message(&self, method: &str, request: &Value) -> Result<Box<dyn MessageDyn>, Status> {
        let message = |suffix| {
            let name = format!("{method}{suffix}");
            self.messages.message_by_package_relative_name(&name).unwrap_or_else(|| panic!("cri.proto: no {name}"))
        };
        let mut encoded = message("Request").new_instance();
        protobuf_json_mapping::merge_from_str_with_options(
            &mut *encoded,
            &request.to_string(),
            // A misspelt field is the test's mistake.
            &ParseOptions { ignore_unknown_fields: false, ..Default::default() },
        )
        .unwrap_or_else(|e| panic!("{method} {request}: {e}"));
        let encoded = encoded.write_to_bytes_dyn().expect("an encoded message");
        let reply = block_on(async {
            let call = unary(&self.socket, method, &encoded);
            tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| panic!("{method} {request} does not end"))
        })?;
        Ok(message("Response").parse_from_bytes(&reply).expect("a reply of its type"))
    }
}

/// A field of bytes, or a number, of a reply.
pub fn bytes_of(reply: &dyn MessageDyn, field: &str) -> Vec<u8> {
    let descriptor = reply.descriptor_dyn().field_by_name(field).expect("a field of that name");
    match descriptor.get_singular_field_or_default(reply) {
        ReflectValueRef::Bytes(bytes) => bytes.to_vec(),
        other => panic!("{field} is not bytes: {other:?}"),
    }
}

/// A number of a reply.
pub fn number_of(reply: &dyn MessageDyn, field: &str) -> i32 {
    let descriptor = reply.descriptor_dyn().field_by_name(field).expect("a field of that name");
    match descriptor.get_singular_field_or_default(reply) {
        ReflectValueRef::I32(number) => number,
        other => panic!("{field} is not an int32: {other:?}"),
    }
}

/// One call on a connection of its own (grpc: PROTOCOL-HTTP2.md).
async fn unary(socket: &Path, method: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
    let stream = tokio::net::UnixStream::connect(socket).await.expect("containerd listens");
    let (sender, connection) =
        h2::client::Builder::new().handshake::<_, Cursor<Vec<u8>>>(stream).await.expect("an HTTP/2 connection");
    tokio::spawn(connection);
    let mut sender = sender.ready().await.expect("an HTTP/2 stream");
    let service = if method.starts_with("Image") { "ImageService" } else { "RuntimeService" };
    let request = http::Request::post(format!("http://localhost/runtime.v1.{service}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut body) = sender.send_request(request, false).expect("a request");
    // A length-prefixed message: not compressed, four bytes of length.
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    body.send_data(Cursor::new(frame), true).expect("a message sent");
    let response = response.await.expect("a response");
    let headers = response.headers().clone();
    let mut body = response.into_body();
    let mut reply = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.expect("data of the response");
        body.flow_control().release_capacity(data.len()).unwrap();
        reply.extend_from_slice(&data);
    }
    // A response without a message has its status among the headers.
    let trailers = body.trailers().await.expect("trailers").unwrap_or(headers);
    let text = |name| trailers.get(name).map_or("", |value| value.to_str().unwrap_or_default()).to_string();
    match text("grpc-status").parse().expect("a status") {
        0 => Ok(reply.split_off(5)),
        code => Err(Status { code, message: text("grpc-message") }),
    }
}
