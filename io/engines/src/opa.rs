//! OPA's REST interface: `POST /v1/data/…`.

use bytes::Bytes;
use countersign_policy::{Answer, Edits};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::http::{Client, uri};
use crate::input::input;
use crate::{Outcome, Question, answer};

pub(crate) async fn ask(client: &Client, path: &str, question: &Question<'_>) -> Outcome {
    let body = json!({"input": input(question)}).to_string();
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri(path)?;
    let json = HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::CONTENT_TYPE, json);
    let (status, _, body) = client.send(request).await?;
    if status != StatusCode::OK {
        return Err(format!("it answers {status}"));
    }
    let answer: Value =
        serde_json::from_slice(&body).map_err(|e| format!("its answer is not JSON: {e}"))?;
    decision(answer.get("result"))
}

/// A boolean, or an object with `allowed`; an undefined document refuses.
pub(crate) fn decision(result: Option<&Value>) -> Outcome {
    let denied = |why: &str| Ok((Answer::Denied(why.into()), Edits::default(), None));
    let object = match result {
        None | Some(Value::Null) => return denied("the decision is undefined"),
        Some(Value::Bool(true)) => return Ok((Answer::Allowed, Edits::default(), None)),
        Some(Value::Bool(false)) => return denied("the decision is false"),
        Some(Value::Object(object)) => object,
        Some(_) => return Err("its decision is neither a boolean nor an object".into()),
    };
    let fields = pairs(object.get("headers"))?;
    match object.get("allowed") {
        Some(Value::Bool(true)) => {
            let mut edits = Edits::default();
            for (name, value) in &fields {
                answer::edit(&mut edits, name, value, false)?;
            }
            for name in strings(object.get("request_headers_to_remove"))? {
                answer::remove(&mut edits, name)?;
            }
            let parameters = strings(object.get("query_parameters_to_remove"))?;
            edits.remove_parameters = parameters.into_iter().map(str::to_owned).collect();
            Ok((Answer::Allowed, edits, None))
        }
        Some(Value::Bool(false)) => {
            let status = object.get("http_status").and_then(Value::as_i64).unwrap_or(403);
            let body = object.get("body").and_then(Value::as_str).unwrap_or_default();
            let refusal = answer::refusal(status, fields.into_iter(), body.as_bytes());
            Ok((Answer::Denied("`allowed` is false".into()), Edits::default(), Some(refusal)))
        }
        _ => Err("its decision has no boolean `allowed`".into()),
    }
}

/// An object of strings or lists of strings, or a list of such objects.
fn pairs(value: Option<&Value>) -> Result<Vec<(&str, &str)>, String> {
    let mut out = Vec::new();
    let objects: Vec<&Value> = match value {
        None | Some(Value::Null) => return Ok(out),
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
    };
    for object in objects {
        let object = object.as_object().ok_or("its `headers` are not an object")?;
        for (name, value) in object {
            match value {
                Value::String(text) => out.push((name.as_str(), text.as_str())),
                Value::Array(list) => {
                    for text in list {
                        let text = text.as_str().ok_or("a value in its `headers` is not text")?;
                        out.push((name, text));
                    }
                }
                _ => return Err("a value in its `headers` is not text".into()),
            }
        }
    }
    Ok(out)
}

fn strings(value: Option<&Value>) -> Result<Vec<&str>, String> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(Vec::new()) };
    let list = value.as_array().ok_or("a list of names is not a list")?;
    list.iter()
        .map(|v| v.as_str().ok_or_else(|| "a list of names holds something else".to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_yes_allows() {
        let of = |text: &str| decision(serde_json::from_str::<Value>(text).unwrap().get("result"));
        assert!(matches!(of(r#"{"result":true}"#), Ok((Answer::Allowed, ..))));
        for no in
            ["{}", r#"{"result":null}"#, r#"{"result":false}"#, r#"{"result":{"allowed":false}}"#]
        {
            assert!(matches!(of(no), Ok((Answer::Denied(_), ..))), "{no}");
        }
        for broken in [
            r#"{"result":"true"}"#,
            r#"{"result":1}"#,
            r#"{"result":[true]}"#,
            r#"{"result":{}}"#,
            r#"{"result":{"allowed":"yes"}}"#,
            r#"{"result":{"allowed":true,"headers":{"a":1}}}"#,
            r#"{"result":{"allowed":true,"headers":{"a":"b\nc"}}}"#,
            r#"{"result":{"allowed":true,"request_headers_to_remove":"a"}}"#,
        ] {
            assert!(of(broken).is_err(), "{broken}");
        }
        let (_, edits, _) =
            of(r#"{"result":{"allowed":true,"headers":{"X-User":"ann"},"request_headers_to_remove":["authorization"]}}"#)
                .unwrap();
        assert_eq!(edits.set, [("x-user".to_owned(), "ann".to_owned())]);
        assert_eq!(edits.remove, ["authorization"]);
        let (_, _, refusal) =
            of(r#"{"result":{"allowed":false,"http_status":401,"body":"log in","headers":{"www-authenticate":"Basic"}}}"#)
                .unwrap();
        let refusal = refusal.unwrap();
        assert_eq!((refusal.status, refusal.body.as_slice()), (401, &b"log in"[..]));
    }
}
