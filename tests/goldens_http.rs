//! Reference checkpoints through the whole binary: log probabilities and greedy tokens over HTTP,
//! with prompts in chunks, sequences in one batch, and blocks that fit nothing.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use common::{Server, root};
use serde_json::{Value, json};

/// What the goldens allow an engine in f32.
const TOLERANCE: f64 = 2e-3;
/// Logits nearer than this may change places.
const MARGIN: f64 = 2.0 * TOLERANCE;

struct Golden {
    name: String,
    dir: PathBuf,
    json: Value,
}

impl Golden {
    /// Those of the repository; `GOLDENS_DIR` names another directory of the same layout.
    fn all() -> Vec<Self> {
        let parent =
            std::env::var_os("GOLDENS_DIR").map_or_else(|| root().join("tests/goldens"), PathBuf::from);
        let dirs = fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().path());
        let mut dirs: Vec<PathBuf> = dirs.filter(|dir| dir.join("golden.json").is_file()).collect();
        // Families that are refused.
        dirs.retain(|dir| {
            !["v32", "glm5"].iter().any(|name| dir.file_name().unwrap().to_string_lossy().starts_with(name))
        });
        dirs.sort();
        assert!(dirs.len() >= 7, "goldens are missing: {dirs:?}");
        let open = |dir: PathBuf| Self {
            name: dir.file_name().unwrap().to_string_lossy().into_owned(),
            json: serde_json::from_slice(&fs::read(dir.join("golden.json")).unwrap()).unwrap(),
            dir,
        };
        dirs.into_iter().map(open).collect()
    }

    fn serve(&self, more: &[&str]) -> Server {
        let model = self.dir.to_str().unwrap();
        Server::start(&[&["--model", model, "--dtype", "f32", "--max-num-seqs", "8"], more].concat())
    }

    fn prompts(&self) -> &Vec<Value> {
        self.json["prompts"].as_array().unwrap()
    }
}

/// Odd blocks; steps so small that prompts come in chunks and share steps with decoding.
const CHUNKED: [&str; 4] = ["--block-size", "7", "--max-num-batched-tokens", "37"];

fn request(prompt: &Value, max_tokens: usize) -> Value {
    json!({
        "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 20, "ignore_eos": true,
        "return_token_ids": true, "return_tokens_as_token_ids": true,
    })
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// The largest difference between an answer's `top_logprobs` at one place and a golden's `top20`.
fn error(top_logprobs: &Value, top20: &Value) -> f64 {
    let answer: HashMap<u64, f64> = top_logprobs
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, logprob)| {
            (name.strip_prefix("token_id:").unwrap().parse().unwrap(), logprob.as_f64().unwrap())
        })
        .collect();
    let golden = top20.as_array().unwrap();
    let last = golden.last().unwrap()[1].as_f64().unwrap();
    let difference = |pair: &Value| {
        let (id, logprob) = (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap());
        match answer.get(&id) {
            Some(answered) => (answered - logprob).abs(),
            // The last of the twenty may change places with the next.
            None if logprob - last < MARGIN => 0.0,
            None => f64::INFINITY,
        }
    };
    golden.iter().map(difference).fold(0.0, f64::max)
}

/// Steps that must agree with the golden: up to the first choice that is too near to call, or that
/// the tokenizer does not have.
fn certain_steps(greedy: &Value, vocab_size: u64) -> usize {
    let certain = |step: &&Value| {
        step["margin"].as_f64().unwrap() >= MARGIN && step["id"].as_u64().unwrap() < vocab_size
    };
    greedy["steps"].as_array().unwrap().iter().take_while(certain).count()
}

/// Ids of the tokenizer: more than that may be rows of the model, but is never drawn.
fn tokenizer_size(golden: &Golden) -> u64 {
    let json: Value = serde_json::from_slice(&fs::read(golden.dir.join("tokenizer.json")).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap().values().map(|id| id.as_u64().unwrap());
    let added = json["added_tokens"].as_array().unwrap().iter().map(|token| token["id"].as_u64().unwrap());
    vocab.chain(added).max().unwrap() + 1
}

/// Compares a greedy choice with its golden, and returns the largest error of its log probabilities.
fn check_greedy(choice: &Value, greedy: &Value, vocab_size: u64, name: &str) -> f64 {
    let certain = certain_steps(greedy, vocab_size);
    let (answer, expected) = (ids(&choice["token_ids"]), ids(&greedy["ids"]));
    assert_eq!(answer[..certain], expected[..certain], "{name}");
    assert!(answer.iter().all(|id| *id < vocab_size), "{name}: a padded row was drawn: {answer:?}");
    // What was chosen up to a step decides its logits.
    let same = (0..answer.len()).take_while(|&step| step == 0 || answer[step - 1] == expected[step - 1]);
    same.map(|step| error(&choice["logprobs"]["top_logprobs"][step], &greedy["steps"][step]["top20"]))
        .fold(0.0, f64::max)
}

/// The whole answer of one prompt: its greedy choice, and its prompt scored with it.
fn check_golden(golden: &Golden, server: &Server) -> (f64, usize) {
    let name = &golden.name;
    let vocab_size = tokenizer_size(golden);
    let prompts: Vec<&Value> = golden.prompts().iter().map(|prompt| &prompt["ids"]).collect();
    // All prompts in one request: mixed batches.
    let together = server.ask("/v1/completions", &request(&json!(prompts), 32));
    let (mut worst, mut steps) = (0f64, 0);
    for (index, prompt) in golden.prompts().iter().enumerate() {
        let alone = server.ask("/v1/completions", &request(&prompt["ids"], 1));
        worst = worst.max(error(&alone["choices"][0]["logprobs"]["top_logprobs"][0], &prompt["top20"]));
        let choice = &together["choices"][index];
        worst = worst.max(check_greedy(choice, &prompt["greedy"], vocab_size, name));
        steps += certain_steps(&prompt["greedy"], vocab_size);
        check_scores(server, prompt, choice, name);
    }
    (worst, steps)
}

/// A prompt scored by `echo` gives its tokens what generating gave them.
fn check_scores(server: &Server, prompt: &Value, choice: &Value, name: &str) {
    let whole = [ids(&prompt["ids"]), ids(&choice["token_ids"])].concat();
    let mut scoring = request(&json!(whole), 0);
    scoring["echo"] = json!(true);
    let scored = server.ask("/v1/completions", &scoring);
    let scores = scored["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(scores.len(), whole.len(), "{name}");
    assert!(scores[0].is_null(), "{name}: nothing comes before the first token");
    let generated = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    for (score, generated) in scores[scores.len() - generated.len()..].iter().zip(generated) {
        let (score, generated) = (score.as_f64().unwrap(), generated.as_f64().unwrap());
        assert!((score - generated).abs() < TOLERANCE, "{name}: {score} scored, {generated} generated");
    }
}

fn check_chat(golden: &Golden, server: &Server) {
    let chat = &golden.json["chat"];
    assert!(chat["greedy"]["min_margin"].as_f64().unwrap() >= MARGIN, "{}: choose another chat", golden.name);
    let request =
        json!({"messages": chat["messages"], "temperature": 0, "max_tokens": 32, "return_token_ids": true});
    let answer = server.ask("/v1/chat/completions", &request);
    // Where the template opens `<think>`, and 32 tokens do not close it, all is reasoning.
    let message = &answer["choices"][0]["message"];
    let key = if message["content"].is_null() { "reasoning_content" } else { "content" };
    let text = &message[key];
    assert_eq!(text, &chat["text"], "{}: {answer}", golden.name);
    assert_eq!(answer["usage"]["prompt_tokens"], ids(&chat["ids"]).len(), "{}", golden.name);
    let streamed: String = server
        .stream("/v1/chat/completions", &{
            let mut request = request.clone();
            request["stream"] = json!(true);
            request
        })
        .filter_map(|event| event["choices"][0]["delta"][key].as_str().map(str::to_owned))
        .collect();
    assert_eq!(&json!(streamed), text, "{}: streamed", golden.name);
}

#[test]
fn every_golden_in_chunks_and_odd_blocks() {
    for golden in Golden::all() {
        let server = golden.serve(&CHUNKED);
        let (worst, steps) = check_golden(&golden, &server);
        eprintln!(
            "{:<16} largest error of a log probability {worst:.1e}, {steps} greedy tokens equal",
            golden.name
        );
        assert!(worst < TOLERANCE, "{}: {worst}", golden.name);
        assert!(steps >= 32, "{}: {steps} steps are too few to tell", golden.name);
        check_chat(&golden, &server);
    }
}

#[test]
fn the_shape_of_steps_changes_no_answer() {
    let golden = Golden::all().into_iter().find(|golden| golden.name == "v3-f32").unwrap();
    let prompts: Vec<&Value> = golden.prompts().iter().map(|prompt| &prompt["ids"]).collect();
    let answers =
        [&CHUNKED[..], &[], &["--block-size", "1", "--max-num-batched-tokens", "1"], &["--threads", "1"]]
            .map(|shape| {
                let server = golden.serve(shape);
                let answer = server.ask("/v1/completions", &request(&json!(prompts), 16));
                let choices = answer["choices"].as_array().unwrap().clone();
                choices.into_iter().map(|choice| ids(&choice["token_ids"])).collect::<Vec<_>>()
            });
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}
