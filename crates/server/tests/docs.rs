//! The OpenAPI document, held to the routes and to what they answer.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{
    PATIENCE, Reply, Scripted, Server, SharedScript, model, model_limits, options, post, started, tokenizer,
};
use engine::request::{End, Event};
use engine::runner::Limits;
use engine::testing::FakeRunner;
use serde_json::{Value, json};
use server::{Options, ServedModel};

/// The document, and what is checked against it.
struct Document(Value);

impl Document {
    async fn of(server: &Server) -> Self {
        let reply = server.get("/openapi.json").await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
        Self(reply.json())
    }

    /// Panics unless the answer is one that the document knows.
    fn check(&self, path: &str, method: &str, reply: &Reply) {
        let status = reply.status.to_string();
        let described = self.resolve(&self.0["paths"][path][method]["responses"][&status]);
        assert!(described.is_object(), "{method} {path} has no {status}: {reply:?}");
        for (name, _) in described["headers"].as_object().into_iter().flatten() {
            assert!(
                reply.header(&name.to_lowercase()).is_some() || name == "Retry-After",
                "{path}: {name} in {reply:?}"
            );
        }
        let media_type = reply.header("content-type").unwrap().split(';').next().unwrap();
        let schema = &described["content"][media_type]["schema"];
        assert!(schema.is_object(), "{path} {status} has no {media_type}: {described}");
        match media_type {
            "application/json" => self.validate(schema, &reply.json()),
            "text/event-stream" => {
                let lines = reply.body.lines().filter_map(|line| line.strip_prefix("data: "));
                let data = lines.filter(|data| *data != "[DONE]");
                let events: Vec<Value> = data.map(|data| serde_json::from_str(data).unwrap()).collect();
                assert!(!events.is_empty(), "{reply:?}");
                events.iter().for_each(|event| self.validate(schema, event));
            }
            _ => {}
        }
    }

    fn validate(&self, schema: &Value, value: &Value) {
        let mut root = schema.clone();
        root["components"] = json!({"schemas": closed(&self.0["components"]["schemas"])});
        let validator = jsonschema::validator_for(&root).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(value).map(|e| format!("{e} at {}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{schema}: {errors:?} in {value}");
    }

    fn resolve<'a>(&'a self, described: &'a Value) -> &'a Value {
        match described["$ref"].as_str() {
            Some(place) => self.0.pointer(place.trim_start_matches('#')).unwrap(),
            None => described,
        }
    }
}

/// The schemas, but objects have no keys that are not named. `TopLogprob` is also a part of another object.
fn closed(schemas: &Value) -> Value {
    let mut schemas = schemas.clone();
    for (name, schema) in schemas.as_object_mut().unwrap() {
        if name != "TopLogprob" {
            close(schema);
        }
    }
    schemas
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) if map.contains_key("allOf") => {
            map.insert("unevaluatedProperties".into(), false.into());
        }
        Value::Object(map) => {
            map.values_mut().for_each(close);
            if map.contains_key("properties") && map.get("type") == Some(&json!("object")) {
                map.insert("additionalProperties".into(), false.into());
            }
        }
        Value::Array(list) => list.iter_mut().for_each(close),
        _ => {}
    }
}

/// The real engine on noise, with room for long prompts.
async fn noise(options: Options) -> Server {
    let limits = Limits { context_len: 2_000, n_blocks: 4_000, step_tokens: 64, ..model_limits() };
    let context_len = limits.context_len;
    let server = Server::loading(options).await;
    let of_engine = engine::Options { sampled_vocab: tokenizer().vocab_size(), ..engine::Options::default() };
    let (handle, _) = engine::start(FakeRunner::new(limits), of_engine);
    server.app.set_model(ServedModel { context_len, ..model(Box::new(handle)) });
    server
}

#[tokio::test]
async fn every_route_is_described_and_there() {
    let server = Server::fake().await;
    let document = Document::of(&server).await;
    assert!(document.0["openapi"].as_str().unwrap().starts_with("3.1."));
    let paths = document.0["paths"].as_object().unwrap();
    let described: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
    let source = include_str!("../src/routes.rs").split(".route(").skip(1);
    let source = source.map(|rest| rest.split('"').nth(1).unwrap().replace("{*id}", "{id}"));
    let routes: BTreeSet<String> = source.collect();
    assert_eq!(described, routes.iter().map(String::as_str).collect());
    for (path, item) in paths {
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let sent = path.replace("{id}", "alias");
            let head = format!(
                "{method} {sent} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
            );
            let reply = server.send(&head).await;
            document.check(path, &method.to_lowercase(), &reply);
            assert_ne!(reply.status, 405, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn schemas_are_schemas_and_references_lead_somewhere() {
    let document = Document::of(&Server::fake().await).await;
    for (name, schema) in document.0["components"]["schemas"].as_object().unwrap() {
        assert!(jsonschema::meta::is_valid(schema), "{name}");
    }
    let text = document.0.to_string();
    for place in text.split(r##""$ref":"#"##).skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document.0.pointer(place).is_some(), "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_as_described() {
    let server = noise(options()).await;
    let document = Document::of(&server).await;
    let messages = json!([{"role": "user", "content": "hello"}]);
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties":
        {"a": {"type": "integer"}}, "required": ["a"]}}});
    let usage = json!({"include_usage": true, "continuous_usage_stats": true});
    let schema = tool["function"]["parameters"].clone();
    let flat = json!({"type": "function", "name": "f", "parameters": schema});
    let their = json!({"name": "f", "input_schema": schema});
    let (responses, anthropic) = ("/v1/responses", "/v1/messages");
    let chat = "/v1/chat/completions";
    let completions = "/v1/completions";
    let cases = [
        (chat, json!({"messages": messages, "max_tokens": 5})),
        (
            chat,
            json!({"messages": messages, "max_tokens": 5, "n": 2, "logprobs": true, "top_logprobs": 2,
            "return_token_ids": true}),
        ),
        (chat, json!({"messages": messages, "max_tokens": 200, "tools": [tool], "tool_choice": "required"})),
        (
            chat,
            json!({"messages": messages, "max_tokens": 200, "tools": [tool], "tool_choice": "required",
            "stream": true, "stream_options": usage, "logprobs": true, "return_token_ids": true}),
        ),
        (chat, json!({"messages": messages, "max_tokens": 5, "stream": true})),
        (
            chat,
            json!({"messages": messages, "max_tokens": 50, "stop_token_ids": (0..500).step_by(2).collect::<Vec<_>>()}),
        ),
        (chat, json!({"messages": []})),
        (chat, json!({"messages": messages, "max_tokens": 5000})),
        (chat, json!({"messages": messages, "model": "other"})),
        (completions, json!({"prompt": "hello", "max_tokens": 5})),
        (
            completions,
            json!({"prompt": ["hello", "there"], "max_tokens": 5, "n": 2, "logprobs": 2, "echo": true,
            "return_token_ids": true}),
        ),
        (
            completions,
            json!({"prompt": "hello", "max_tokens": 5, "logprobs": 0, "stream": true, "stream_options": usage}),
        ),
        (completions, json!({"prompt": 5})),
        (completions, json!({"prompt": "hello", "max_tokens": 5, "best_of": 3, "prompt_logprobs": 1})),
        (chat, json!({"messages": messages, "max_tokens": 5, "prompt_logprobs": 1})),
        (responses, json!({"input": "hello", "max_output_tokens": 5, "top_logprobs": 2})),
        (responses, json!({"input": "hello", "max_output_tokens": 5, "stream": true, "top_logprobs": 2})),
        (
            responses,
            json!({"input": "hello", "max_output_tokens": 200, "tools": [flat], "tool_choice": "required",
            "metadata": {"a": "b"}, "text": {"verbosity": "low"}}),
        ),
        (
            responses,
            json!({"input": "hello", "max_output_tokens": 200, "tools": [flat], "tool_choice": "required",
            "stream": true}),
        ),
        (responses, json!({"input": 5})),
        (anthropic, json!({"messages": messages, "max_tokens": 5})),
        (anthropic, json!({"messages": messages, "max_tokens": 5, "stream": true})),
        (
            anthropic,
            json!({"messages": messages, "max_tokens": 200, "tools": [their], "tool_choice": {"type": "any"}}),
        ),
        (
            anthropic,
            json!({"messages": messages, "max_tokens": 200, "tools": [their], "tool_choice": {"type": "any"},
            "stream": true}),
        ),
        (anthropic, json!({"messages": messages})),
        (anthropic, json!({"messages": messages, "max_tokens": 5, "model": "other"})),
        ("/v1/messages/count_tokens", json!({"messages": messages})),
        ("/v1/messages/count_tokens", json!({})),
        ("/v1/embeddings", json!({"input": "hello"})),
        ("/tokenize", json!({"prompt": "hello"})),
        ("/tokenize", json!({"messages": messages, "return_token_strs": true})),
        ("/tokenize", json!({})),
        ("/detokenize", json!({"tokens": [5, 6]})),
        ("/detokenize", json!({"tokens": [-1]})),
    ];
    for (path, body) in cases {
        document.check(path, "post", &server.post(path, &body).await);
    }
    for (path, sent) in [
        ("/v1/models", "/v1/models"),
        ("/v1/models/{id}", "/v1/models/org%2Ffake"),
        ("/v1/models/{id}", "/v1/models/none"),
        ("/health", "/health"),
        ("/ready", "/ready"),
        ("/version", "/version"),
        ("/metrics", "/metrics"),
        ("/openapi.json", "/openapi.json"),
        ("/docs", "/docs"),
    ] {
        document.check(path, "get", &server.get(sent).await);
    }
}

#[tokio::test]
async fn failures_are_as_described() {
    let script = Scripted::new(|_, script| drop(script));
    let script = std::sync::Arc::new(script);
    let brief = Options { body_bytes_max: 1000, read_timeout: Duration::from_millis(100), ..options() };
    let mut server = Server::loading(brief).await;
    let document = Document::of(&server).await;
    let body = json!({"prompt": "hello"});
    let path = "/v1/completions";
    let check = |status: u16, reply: Reply| {
        assert_eq!(reply.status, status, "{reply:?}");
        document.check(path, "post", &reply);
    };
    check(503, server.post(path, &body).await);
    for path in ["/health", "/ready"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 503);
        document.check(path, "get", &reply);
    }
    server.app.set_model(model(Box::new(SharedScript(script.clone()))));
    check(500, server.post(path, &body).await);
    script.room.store(0, std::sync::atomic::Ordering::SeqCst);
    check(429, server.post(path, &body).await);
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    check(413, server.send(&format!("{head}Content-Length: 1001\r\n\r\n")).await);
    check(
        415,
        server.send(&format!("{head}Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}")).await,
    );
    check(408, server.send(&format!("{head}Content-Length: 2\r\n\r\n{{")).await);
    check(400, server.send(&post(path, "{")).await);
    let long = |kib: usize| "x".repeat(kib << 10);
    check(414, server.send(&post(&format!("{path}?{}", long(9)), "{}")).await);
    check(431, server.send(&format!("{head}X-Long: {}\r\nContent-Length: 2\r\n\r\n{{}}", long(64))).await);
    server.stop();
}

#[tokio::test]
async fn an_error_in_a_stream_is_as_described() {
    let server = common::scripted(options(), |_, script| {
        script.send(started());
        script.send(common::tokens(&[50, 51]));
        std::thread::sleep(Duration::from_millis(50));
        script.send(Event::End(End::Failed("a fault".into())));
    })
    .await;
    let document = Document::of(&server).await;
    let reply = server.post("/v1/completions", &json!({"prompt": "hello", "stream": true})).await;
    assert!(reply.body.contains(r#"{"error":"#), "{reply:?}");
    document.check("/v1/completions", "post", &reply);
}

#[tokio::test]
async fn who_may_call_is_described() {
    let bearer = json!([{"bearer": []}]);
    let either = json!([{"bearer": []}, {"x-api-key": []}]);
    for (keys, open) in [(vec![], json!([{}])), (vec!["key".to_owned()], json!([]))] {
        let server = Server::loading(Options { api_keys: keys.into_iter().collect(), ..options() }).await;
        let document = Document::of(&server).await;
        let of = |path: &str, method: &str| document.0["paths"][path][method]["security"].clone();
        let with = |schemes: &Value| {
            Value::from([schemes.as_array().unwrap().as_slice(), open.as_array().unwrap()].concat())
        };
        assert_eq!(of("/v1/completions", "post"), with(&bearer));
        assert_eq!(of("/v1/messages", "post"), with(&either));
        assert_eq!(of("/health", "get"), json!(null));
        for (path, method, body) in [("/v1/completions", "post", "{}"), ("/v1/models", "get", "")] {
            let request = post(path, body).replace("POST", &method.to_uppercase());
            document.check(path, method, &server.send(&request).await);
        }
    }
}

#[tokio::test]
async fn the_page_needs_no_other_host() {
    let reply = tokio::time::timeout(PATIENCE, Server::fake().await.get("/docs")).await.unwrap();
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(reply.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    for place in ["http://", "https://", "src=", "@import", " url(", "//cdn"] {
        assert!(!reply.body.contains(place), "{place}");
    }
}
