//! A service of our own on the shim's socket, for the command line: where the time of operations went.
//!
//! `dray.v1.Shim/Trace` takes the task service's StateRequest, of which an empty exec id asks for all of the container, and
//! answers with an Any whose value is a JSON document, so that a command line of another version reads what it knows of it.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::StateRequest;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};

use crate::engine::trace::{Operation, Operations};
use crate::error::{Error, Kind, Result};

use super::service::{Task, status};

/// The service's name.
pub const SERVICE: &str = "dray.v1.Shim";

/// Its method.
pub const METHOD: &str = "Trace";

/// What the answer's value is.
const TYPE: &str = "dray.v1.Trace";

struct Trace(Arc<Task>);

/// The service, by its name.
pub(super) fn service(task: Arc<Task>) -> (String, Service) {
    let trace: Box<dyn MethodHandler + Send + Sync> = Box::new(Trace(task));
    let methods = HashMap::from([(METHOD.to_owned(), trace)]);
    (SERVICE.to_owned(), Service { methods, streams: HashMap::new() })
}

#[async_trait]
impl MethodHandler for Trace {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let mut response = Response::new();
        match self.trace(&request.payload).await {
            Ok(payload) => {
                response.set_status(ttrpc::get_status(ttrpc::Code::OK, ""));
                response.payload = payload;
            }
            Err(ttrpc::Error::RpcStatus(status)) => response.set_status(status),
            Err(e) => return Err(e),
        }
        Ok(response)
    }
}

impl Trace {
    async fn trace(&self, request: &[u8]) -> ttrpc::Result<Vec<u8>> {
        let wrong = |e: &dyn std::fmt::Display| status(Error::new(Kind::InvalidArgument, format!("{METHOD}: {e}")));
        let request = StateRequest::parse_from_bytes(request).map_err(|e| wrong(&e))?;
        let exec = (!request.exec_id.is_empty()).then_some(request.exec_id);
        let operations =
            self.0.engine(move |engine| async move { engine.traced(&request.id, exec.as_deref()) }).await?;
        let value = Operations { operations }.to_json();
        let answer = Any { type_url: TYPE.to_owned(), value, ..Default::default() };
        answer.write_to_bytes().map_err(|e| status(Error::new(Kind::Internal, e.to_string())))
    }
}

/// The question, for [`SERVICE`] and [`METHOD`].
pub fn question(id: &str, exec: Option<&str>) -> StateRequest {
    StateRequest { id: id.to_owned(), exec_id: exec.unwrap_or_default().to_owned(), ..Default::default() }
}

/// What the answer says.
///
/// # Errors
/// `Internal` for what no version of this program says.
pub fn answer(answer: &Any) -> Result<Vec<Operation>> {
    Operations::from_json(&answer.value).map(|all| all.operations)
}
