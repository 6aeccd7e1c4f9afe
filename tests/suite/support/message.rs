//! A message as consumers see it.

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use serde_json::{Map, Value};

/// The fields of every message, in alphabetical order.
pub const FIELDS: [&str; 10] = [
    "accessed_time",
    "changed_time",
    "event_type",
    "file_path",
    "modified_time",
    "neighbors",
    "sha256_hash",
    "size",
    "timestamp",
    "xxh128_hash",
];

/// One message, whether it came from the broker or as a line of standard output.
#[derive(Clone, Debug)]
pub struct Message {
    pub body: Vec<u8>,
    pub fields: Map<String, Value>,
    /// `None` for a line of standard output.
    pub envelope: Option<Envelope>,
}

/// What only AMQP carries.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub exchange: String,
    pub routing_key: String,
    pub properties: BasicProperties,
}

impl Message {
    pub fn parse(body: &[u8]) -> Self {
        let fields = match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => fields,
            other => panic!("a message is not a JSON object but {other:?}: {}", String::from_utf8_lossy(body)),
        };
        Self { body: body.to_vec(), fields, envelope: None }
    }

    pub fn text(&self, field: &str) -> &str {
        self.fields
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("no string `{field}` in {:?}", self.fields))
    }

    pub fn path(&self) -> &str {
        self.text("file_path")
    }

    /// The last component of the path, as JSON carries it.
    pub fn name(&self) -> &str {
        self.path().rsplit('/').next().unwrap_or_default()
    }

    pub fn event(&self) -> &str {
        self.text("event_type")
    }

    pub fn sha256(&self) -> &str {
        self.text("sha256_hash")
    }

    pub fn size(&self) -> u64 {
        self.fields["size"].as_u64().expect("`size` is an integer")
    }

    pub fn neighbors(&self) -> Vec<&str> {
        self.fields["neighbors"]
            .as_array()
            .expect("`neighbors` is an array")
            .iter()
            .map(|path| path.as_str().expect("a neighbor is a string"))
            .collect()
    }

    pub fn envelope(&self) -> &Envelope {
        self.envelope.as_ref().expect("a message from the broker")
    }

    pub fn message_id(&self) -> &str {
        let id = self.envelope().properties.message_id().as_ref();
        id.expect("a message id").as_str()
    }

    /// The kind of the body, and the number of its schema.
    pub fn message_type(&self) -> &str {
        let kind = self.envelope().properties.kind().as_ref();
        kind.expect("a type").as_str()
    }

    pub fn is_removal(&self) -> bool {
        self.message_type() == "apollonia.file-removed.v1"
    }

    pub fn moved_from_header(&self) -> Option<&AMQPValue> {
        self.envelope().properties.headers().as_ref()?.inner().get("x-moved-from")
    }

    pub fn path_bytes_header(&self) -> Option<Vec<u8>> {
        let headers = self.envelope().properties.headers().as_ref()?;
        match headers.inner().get("x-file-path-bytes")? {
            AMQPValue::ByteArray(bytes) => Some(bytes.as_slice().to_vec()),
            other => panic!("x-file-path-bytes is not a byte array but {other:?}"),
        }
    }
}
