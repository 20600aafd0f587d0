//! Requests that no client should send, thousands of them, to the real server: each is answered as the API says, none takes
//! the server with it. 2,000 requests; `HAMMER_REQUESTS=60000` makes it a real one, `HAMMER_SEED` another one.

#[path = "hammer/bad.rs"]
mod bad;
mod common;
#[path = "hammer/dice.rs"]
mod dice;
#[path = "hammer/good.rs"]
mod good;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bad::Sent;
use common::{PATIENCE, Server};
use dice::Dice;
use good::{CHAT, COUNT, MESSAGES, RESPONSES, ROUTES};
use serde_json::{Value, json};

const BATCH: usize = 250;
const CLIENTS: usize = 8;

/// The server's own limit is far above. Who is still sending when it says 413 may not hear it: that is another test's affair.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Small enough for a request that asks for all that it may have to end soon.
const SHAPE: [&str; 8] = [
    "--max-model-len",
    "256",
    "--max-num-seqs",
    "32",
    "--kv-cache-memory",
    "2MiB",
    "--grammar-timeout",
    "0.3",
];

/// What a POST to a known route may hear of itself. 429: one request may ask for more choices than others leave room for.
const STATUSES: [u16; 5] = [200, 400, 404, 415, 429];

#[derive(Default)]
struct Tally {
    statuses: BTreeMap<(&'static str, u16), usize>,
    codes: BTreeMap<String, usize>,
    slowest: (Duration, String),
}

#[test]
fn each_request_is_answered_as_documented() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).map_or(otherwise, |text| text.parse().expect("a whole number"))
    };
    let (n, seed) = (number("HAMMER_REQUESTS", 2000) as usize, number("HAMMER_SEED", 1));
    let server = Server::start(&SHAPE);
    let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
    let agent: ureq::Agent = agent.max_idle_connections_per_host(CLIENTS).build().into();
    let (tally, start) = (Mutex::new(Tally::default()), Instant::now());
    for first in (0..n).step_by(BATCH) {
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (agent, server, tally) = (&agent, &server, &tally);
                let mine = (first..n.min(first + BATCH)).skip(client).step_by(CLIENTS);
                scope.spawn(move || mine.for_each(|index| strike(server, agent, seed, index, tally)));
            }
        });
        assert_unharmed(&server);
    }
    let tally = tally.into_inner().unwrap();
    eprintln!("{n} requests of seed {seed} in {:.1} s; the slowest took", start.elapsed().as_secs_f64());
    eprintln!("{:.2} s: {}", tally.slowest.0.as_secs_f64(), tally.slowest.1);
    eprintln!("{:#?}\n{:#?}", tally.statuses, tally.codes);
    let answered = tally.statuses.iter().filter(|((_, status), _)| *status == 200).map(|(_, n)| n);
    assert!(answered.sum::<usize>() * 10 > n, "few of them get far");
}

/// Sends the request of this number and judges its answer.
fn strike(server: &Server, agent: &ureq::Agent, seed: u64, index: usize, tally: &Mutex<Tally>) {
    let mut dice = Dice::new(seed << 32 | index as u64);
    let route = *dice.of(&ROUTES);
    let mut body = good::request(route, &mut dice);
    for _ in 0..dice.below(4) {
        let before = body.clone();
        bad::mutate(route, &mut body, &mut dice);
        if body.to_string().len() > BODY_BYTES_MAX {
            body = before;
        }
    }
    let sent = bad::encode(route, &body, &mut dice);
    let shown =
        format!("{index}: {route} {} bytes {:.300}", sent.body.len(), String::from_utf8_lossy(&sent.body));
    let start = Instant::now();
    let (status, code) = judge(server, agent, &sent).unwrap_or_else(|why| panic!("{why}\nrequest {shown}"));
    let took = start.elapsed();
    let mut tally = tally.lock().unwrap();
    *tally.statuses.entry((route, status)).or_default() += 1;
    *tally.codes.entry(code).or_default() += 1;
    if took > tally.slowest.0 {
        tally.slowest = (took, shown);
    }
}

/// Status and the error's code, or what is wrong with the answer.
fn judge(server: &Server, agent: &ureq::Agent, sent: &Sent) -> Result<(u16, String), String> {
    let mut request = agent.post(format!("{}{}", server.url, sent.route));
    for (name, value) in &sent.headers {
        request = request.header(*name, *value);
    }
    let mut response = request.send(&sent.body[..]).map_err(|error| format!("no answer: {error}"))?;
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.to_owned();
    let reader = response.body_mut().with_config().limit(1 << 30);
    let text = reader.read_to_string().map_err(|error| format!("{status}, cut: {error}"))?;
    let wrong = |why: &str| Err(format!("{why}: {status} {kind} {text:.2000}"));
    if !STATUSES.contains(&status) {
        return wrong("not a documented status");
    }
    if status == 200 && kind == "text/event-stream" {
        return match stream_end(sent.route, &text) {
            Ok(()) => Ok((status, "stream".to_owned())),
            Err(why) => wrong(&why),
        };
    }
    let Ok(answer) = serde_json::from_str::<Value>(&text) else { return wrong("not JSON") };
    match (status, error_code(sent.route, &answer)) {
        (200, None) if answer.is_object() => Ok((status, "answer".to_owned())),
        (400.., Some(code)) if kind == "application/json" => Ok((status, code)),
        _ => wrong("neither an answer nor an error"),
    }
}

/// The code of an error of the route's shape, whose text tells nothing of the server's inside.
fn error_code(route: &str, answer: &Value) -> Option<String> {
    let error = answer.get("error").filter(|error| error.is_object())?;
    let message = error["message"].as_str().filter(|message| !message.is_empty())?;
    let inside = [".rs", "panicked", "crates/", "serde_json::", "/root", "/tmp", "/home"];
    assert!(!inside.iter().any(|word| message.contains(word)), "it tells too much: {message}");
    assert!(message.len() < 2000, "it repeats too much: {message}");
    let kind = error["type"].as_str()?;
    if [MESSAGES, COUNT].contains(&route) {
        return (answer["type"] == "error").then(|| kind.to_owned());
    }
    let keys: Vec<&String> = error.as_object()?.keys().collect();
    let param = &error["param"];
    let whole = keys == ["message", "type", "param", "code"] && (param.is_null() || param.is_string());
    error["code"].as_str().filter(|_| whole).map(str::to_owned)
}

/// Each event is JSON, none is an error, and the last is the one that ends a stream of this route.
fn stream_end(route: &str, text: &str) -> Result<(), String> {
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (last, events) = data.split_last().ok_or("a stream of nothing")?;
    // The request's own fields may leave nothing to draw, which is seen only then.
    if text.contains("No token was left to draw") {
        return Ok(());
    }
    let ends = match route {
        MESSAGES => last.contains("\"type\":\"message_stop\""),
        RESPONSES => {
            last.contains("\"type\":\"response.completed\"")
                || last.contains("\"type\":\"response.incomplete\"")
        }
        _ => *last == "[DONE]",
    };
    if !ends {
        return Err("a stream without an end".to_owned());
    }
    for event in events {
        let event: Value = serde_json::from_str(event).map_err(|_| format!("an event {event:?}"))?;
        if event["type"] == "error" || event.get("error").is_some_and(|error| !error.is_null()) {
            return Err(format!("a stream with an error: {event}"));
        }
    }
    Ok(())
}

/// Nothing runs any more, and who asks properly hears what is right.
fn assert_unharmed(server: &Server) {
    let gauges = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"];
    server.wait_until("idle", || gauges.iter().all(|gauge| server.metric(gauge) == 0.0));
    let joke = json!({"messages": [{"role": "user", "content": "got any jokes??"}], "temperature": 0});
    let answer = server.ask(CHAT, &joke);
    let expected = "Why did the token cross the strait? To get to the other slide.";
    assert_eq!(answer["choices"][0]["message"]["content"], expected);
    assert_eq!(server.get("/health").0, 200);
}
