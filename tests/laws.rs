//! What must not change an answer, on real models over HTTP: company, cuts, blocks, a full pool, and
//! what others have left in the cache. Compared are token ids and log probabilities, to the last bit.

mod common;

use common::{Server, golden};
use serde_json::{Value, json};

/// A context of 1,024 tokens and few places make a pool that is easily filled.
const PLACES: &str = "8";
const CONTEXT: &str = "1024";

fn serve(model: &str, more: &[&str]) -> Server {
    Server::start(&[&["--model", model, "--max-num-seqs", PLACES, "--max-model-len", CONTEXT], more].concat())
}

/// Models small enough, one of them in bf16, where a bit is easily lost.
fn models() -> [String; 3] {
    ["demo".into(), golden("v3-tied-f32"), golden("v2lite-bf16")]
}

/// Ids that all these models have, no two prompts alike from the `name`d place on.
fn prompt(shared: usize, name: usize, len: usize) -> Vec<u64> {
    let own = |i: usize| 20 + (i * 13 + i * i % 17 + if i < shared { 0 } else { 7 * name + 1 }) % 300;
    (0..len).map(|i| own(i) as u64).collect()
}

fn request(prompt: &[u64], max_tokens: usize, more: &Value) -> Value {
    let mut request = json!({
        "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "logprobs": 3,
        "return_token_ids": true,
    });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

/// Prompts that share their beginnings, greedy, drawn and of a form, with and without scores of the prompt.
fn requests() -> Vec<Value> {
    let drawn = json!({"temperature": 0.9, "top_p": 0.9, "seed": 5});
    let scored = json!({"echo": true, "temperature": 0});
    let formed =
        json!({"temperature": 0.9, "seed": 6, "ignore_eos": false, "guided_regex": "([a-z ]{2,5},){2,9}"});
    let sizes = [(0, 5), (40, 90), (40, 130), (200, 255), (200, 256), (200, 300), (512, 520), (512, 700)];
    let sized = sizes.iter().enumerate();
    sized
        .flat_map(|(name, &(shared, len))| {
            let prompt = prompt(shared, name, len);
            let more = if len < 200 { &scored } else { &json!({}) };
            [request(&prompt, 24, more), request(&prompt, 24, &drawn), request(&prompt, 24, &formed)]
        })
        .collect()
}

fn choices(server: &Server, request: &Value) -> Value {
    server.ask("/v1/completions", request)["choices"].clone()
}

fn one_by_one(server: &Server, requests: &[Value]) -> Vec<Value> {
    requests.iter().map(|request| choices(server, request)).collect()
}

fn together(server: &Server, requests: &[Value]) -> Vec<Value> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = requests.iter().map(|request| scope.spawn(|| choices(server, request))).collect();
        asked.into_iter().map(|answer| answer.join().unwrap()).collect()
    })
}

fn assert_equal(got: &[Value], expected: &[Value], what: &str) {
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got, expected, "{what}, request {index}");
    }
}

fn assert_idle(server: &Server) {
    for gauge in ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"] {
        assert_eq!(server.metric(gauge), 0.0, "{gauge}");
    }
}

#[test]
fn a_cached_prompt_is_answered_as_a_new_one() {
    for model in models() {
        let expected = one_by_one(&serve(&model, &["--no-prefix-cache"]), &requests());
        let server = serve(&model, &[]);
        for turn in ["first", "second"] {
            assert_equal(&one_by_one(&server, &requests()), &expected, &format!("{model}, {turn} time"));
        }
        assert!(server.metric("vllm:prefix_cache_hits_total") > 0.0);
        assert_idle(&server);
    }
}

/// One beginning, shorter than a unit of prefill, of prompts that fill it each in its own way.
#[test]
fn a_beginning_shared_within_a_unit_is_found() {
    for model in models() {
        let (cached, new) = (serve(&model, &[]), serve(&model, &["--no-prefix-cache"]));
        for name in 0..4 {
            let request = request(&prompt(200, name, 300 + 100 * name), 12, &json!({}));
            let answer = cached.ask("/v1/completions", &request);
            assert_eq!(answer["choices"], choices(&new, &request), "{model}, prompt {name}");
            let hit = if name == 0 { 0 } else { 192 };
            assert_eq!(
                answer["usage"]["prompt_tokens_details"]["cached_tokens"], hit,
                "{model}, prompt {name}"
            );
        }
    }
}

/// A conversation: each prompt is all that was said before, and a little more.
#[test]
fn turns_find_their_own_blocks_and_are_answered_as_if_new() {
    for model in models() {
        let (cached, new) = (serve(&model, &[]), serve(&model, &["--no-prefix-cache"]));
        let mut said = prompt(0, 1, 30);
        let (mut hits, mut sent) = (0, 0);
        for turn in 0..10 {
            let request = request(&said, 40, &json!({}));
            let answer = cached.ask("/v1/completions", &request);
            assert_eq!(answer["choices"], choices(&new, &request), "{model}, turn {turn}");
            let usage = &answer["usage"];
            let (hit, len) =
                (usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(), said.len() as u64);
            assert!(hit.is_multiple_of(64) && hit < len, "{hit} of {len} cached");
            (hits, sent) = (hits + hit, sent + len);
            let ids = answer["choices"][0]["token_ids"].as_array().unwrap();
            said.extend(ids.iter().map(|id| id.as_u64().unwrap()));
            said.extend(prompt(0, 20 + turn, 15));
        }
        assert!(hits * 2 > sent, "{model}: {hits} of {sent} prompt tokens were cached");
        assert_eq!(cached.metric("vllm:prefix_cache_hits_total"), hits as f64);
    }
}

/// Answers longer than the room that is kept for them: more are begun than can end together.
#[test]
fn a_crowd_in_a_pool_too_small_is_answered_as_one_alone() {
    let long = (0..12).map(|name| {
        let drawn = if name % 2 == 0 { json!({}) } else { json!({"temperature": 0.9, "seed": name, "n": 2}) };
        request(&prompt(10, name, 20 + name), 330 + 10 * name, &drawn)
    });
    let asked: Vec<Value> = requests().into_iter().chain(long).collect();
    for (model, pool) in models().iter().zip(["800KiB", "600KiB", "340KiB"]) {
        let expected = one_by_one(&serve(model, &["--no-prefix-cache"]), &asked);
        for more in [&[][..], &["--no-prefix-cache"]] {
            let server = serve(model, &[&["--kv-cache-memory", pool], more].concat());
            assert_equal(&together(&server, &asked), &expected, &format!("{model} in {pool} {more:?}"));
            let preempted = server.metric("vllm:num_preemptions_total");
            eprintln!("{model} in {pool} {more:?}: {preempted} preemptions");
            assert!(preempted > 0.0, "{model} in {pool} {more:?}");
            assert_idle(&server);
        }
    }
}

/// Whatever the steps and blocks. Where the unit of prefill changes with the step's size, so does which
/// kernel computes a long prompt: there the greedy tokens are compared, in f32.
#[test]
fn chunks_blocks_and_pools_change_no_answer() {
    let model = golden("v3-tied-f32");
    let short: Vec<Value> =
        requests().into_iter().filter(|r| r["prompt"].as_array().unwrap().len() < 256).collect();
    let expected = one_by_one(&serve(&model, &[]), &short);
    for (step, block, pool) in [
        ("1", "64", "2MiB"),
        ("7", "1", "2MiB"),
        ("64", "7", "700KiB"),
        ("4096", "16", "650KiB"),
        ("300", "300", "1MiB"),
    ] {
        let shape = ["--max-num-batched-tokens", step, "--block-size", block, "--kv-cache-memory", pool];
        let server = serve(&model, &shape);
        for turn in ["first", "second"] {
            assert_equal(&together(&server, &short), &expected, &format!("{shape:?}, {turn} time"));
        }
        assert_idle(&server);
    }
}

/// To the last bit as long as the prompt alone fills no unit of prefill.
#[test]
fn a_score_of_an_answer_is_what_it_was_drawn_with() {
    for model in models() {
        let server = serve(&model, &[]);
        for (len, answer_len) in [(3, 200), (60, 250), (250, 400)] {
            let prompt = prompt(0, len, len);
            let drawn = choices(&server, &request(&prompt, answer_len, &json!({})))[0].clone();
            let ids = drawn["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
            let whole: Vec<u64> = prompt.iter().copied().chain(ids).collect();
            let scored = choices(&server, &request(&whole, 0, &json!({"echo": true})))[0].clone();
            let scores = scored["logprobs"]["token_logprobs"].as_array().unwrap();
            let drawn = drawn["logprobs"]["token_logprobs"].as_array().unwrap();
            assert_eq!(scores[len..], drawn[..], "{model}, {len} + {answer_len} tokens");
        }
    }
}

#[test]
fn choices_are_drawn_as_single_runs_of_the_next_seeds() {
    for model in models() {
        let server = serve(&model, &[]);
        for len in [3, 64, 100, 256, 300] {
            let prompt = prompt(0, len, len);
            let with = |n: usize, seed: usize| {
                let more = json!({"n": n, "seed": seed, "temperature": 1.2, "top_p": 0.95});
                choices(&server, &request(&prompt, 30, &more))
            };
            let four = with(4, 11);
            for (index, seed) in (11..15).enumerate() {
                let mut single = with(1, seed)[0].clone();
                single["index"] = json!(index);
                assert_eq!(four[index], single, "{model}, {len} tokens, choice {index}");
            }
            assert_ne!(four[0]["token_ids"], four[1]["token_ids"]);
        }
        assert_idle(&server);
    }
}

#[test]
fn a_truncated_prompt_is_answered_as_its_end() {
    for model in models() {
        let server = serve(&model, &[]);
        let prompt = prompt(0, 1, 1_500);
        for (kept, asked) in [(3, 3), (64, 64), (300, 300), (1_000, -1)] {
            let end = choices(&server, &request(&prompt[1_500 - kept..], 24, &json!({})));
            let cut = request(&prompt, 24, &json!({"truncate_prompt_tokens": asked}));
            assert_eq!(choices(&server, &cut), end, "{model}, {kept} tokens");
        }
    }
}

#[test]
fn a_prompt_has_the_scores_of_its_echo_and_the_best_are_drawn_as_any() {
    for model in models() {
        let server = serve(&model, &[]);
        let prompt = prompt(0, 1, 270);
        let more = json!({"echo": true, "prompt_logprobs": 3, "return_tokens_as_token_ids": true});
        let scored = choices(&server, &request(&prompt, 0, &more))[0].clone();
        for (at, id) in prompt.iter().enumerate().skip(1) {
            let score = &scored["prompt_logprobs"][at];
            assert_eq!(
                score[id.to_string()]["logprob"],
                scored["logprobs"]["token_logprobs"][at],
                "{model}, {at}"
            );
            let echoed = scored["logprobs"]["top_logprobs"][at].as_object().unwrap().len();
            assert_eq!(score.as_object().unwrap().len(), echoed);
        }
        let drawn = json!({"temperature": 1.2, "seed": 4, "n": 4});
        let all = choices(&server, &request(&prompt, 20, &drawn));
        let best =
            choices(&server, &request(&prompt, 20, &json!({"temperature": 1.2, "seed": 4, "best_of": 4})));
        let sum = |choice: &Value| -> f64 {
            let scores = choice["logprobs"]["token_logprobs"].as_array().unwrap();
            scores.iter().map(|score| score.as_f64().unwrap()).sum()
        };
        let sums = all.as_array().unwrap().iter().map(sum);
        assert_eq!(sum(&best[0]), sums.fold(f64::NEG_INFINITY, f64::max), "{model}");
    }
}

/// Whatever the model likes best.
#[test]
fn tokens_that_are_not_allowed_are_not_drawn() {
    for model in models() {
        let server = serve(&model, &[]);
        for sampling in [json!({}), json!({"temperature": 1.5, "seed": 9, "n": 2})] {
            let ask = |fields: Value| {
                let mut more = sampling.clone();
                more.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
                choices(&server, &request(&prompt(0, 1, 40), 60, &more))
            };
            let allowed: Vec<u64> = (30..90).collect();
            let within = ask(json!({"allowed_token_ids": allowed}));
            for choice in within.as_array().unwrap() {
                let ids = choice["token_ids"].as_array().unwrap();
                assert!(
                    ids.len() == 60 && ids.iter().all(|id| allowed.contains(&id.as_u64().unwrap())),
                    "{ids:?}"
                );
            }
            // A letter that it wrote, as a word of its own.
            let free = ask(json!({}));
            let word: String =
                free[0]["text"].as_str().unwrap().chars().filter(char::is_ascii_graphic).take(1).collect();
            let banned = server.ask("/tokenize", &json!({"prompt": word, "add_special_tokens": false}));
            let banned = &banned["tokens"];
            assert_eq!(banned.as_array().unwrap().len(), 1, "{model}, {word}");
            for choice in ask(json!({"bad_words": [word]})).as_array().unwrap() {
                assert!(!choice["token_ids"].as_array().unwrap().contains(&banned[0]), "{model}, {word}");
            }
        }
    }
}

#[test]
fn who_leaves_takes_nothing_from_the_others() {
    let server = serve("demo", &["--kv-cache-memory", "800KiB"]);
    let expected = one_by_one(&server, &requests());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (name, mut endless) in
                (0..40).flat_map(|round| requests().into_iter().map(move |r| (round, r))).take(120)
            {
                endless["stream"] = json!(true);
                endless["max_tokens"] = json!(200);
                // Leaves after so many pieces, at the earliest before the first.
                let _ = server.stream("/v1/completions", &endless).nth(name % 5);
            }
        });
        for _ in 0..3 {
            assert_equal(&together(&server, &requests()), &expected, "beside those who leave");
        }
    });
    server.wait_until("idle", || server.metric("vllm:num_requests_running") == 0.0);
    assert_idle(&server);
}
