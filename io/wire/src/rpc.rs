//! The few names of the RPC framework that a role needs to implement or call a service.

pub use tonic::service::Routes;
pub use tonic::transport::Channel;
pub use tonic::{Code, Request, Response, Status, Streaming};

/// A server stream.
pub type BoxStream<T> =
    std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send + 'static>>;

/// Packs a message into `Any`.
pub fn pack<M: prost::Name>(message: &M) -> prost_types::Any {
    pack_as(message, &format!("type.googleapis.com/{}", M::full_name()))
}

/// Packs a message under an explicit type URL.
pub fn pack_as<M: prost::Message>(message: &M, type_url: &str) -> prost_types::Any {
    prost_types::Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

/// Unpacks an `Any` of the given type URL.
pub fn unpack_as<M: prost::Message + Default>(any: &prost_types::Any, type_url: &str) -> Option<M> {
    (any.type_url == type_url).then(|| M::decode(any.value.as_slice()).ok()).flatten()
}

/// Protobuf's well-known types that occur in our services' signatures.
pub use prost_types::{Struct, Timestamp, Value, value};

/// Reads a JSON object into a protobuf `Struct`.
pub fn to_struct(json: &serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct { fields: json.iter().map(|(k, v)| (k.clone(), to_value(v))).collect() }
}

fn to_value(json: &serde_json::Value) -> Value {
    use value::Kind;
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(b) => Kind::BoolValue(*b),
        serde_json::Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(0.0)),
        serde_json::Value::String(s) => Kind::StringValue(s.clone()),
        serde_json::Value::Array(a) => {
            Kind::ListValue(prost_types::ListValue { values: a.iter().map(to_value).collect() })
        }
        serde_json::Value::Object(o) => Kind::StructValue(to_struct(o)),
    };
    Value { kind: Some(kind) }
}
