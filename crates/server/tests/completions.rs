//! What requests may ask of prompts and choices beyond plain text.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Server, VOCAB_SIZE, finished, model_limits, options, scripted, tokenizer};
use engine::request::{Event, FinishReason, Logprobs, Token};
use engine::testing::FakeRunner;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Draws tokens of the tokenizer alone, as real servers do.
async fn fake() -> Server {
    let of_engine = engine::Options { sampled_vocab: tokenizer().vocab_size(), ..engine::Options::default() };
    Server::running(options(), FakeRunner::new(model_limits()), of_engine).await
}

fn with(mut body: Value, fields: &Value) -> Value {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn completion(fields: &Value) -> Value {
    with(json!({"prompt": [3, 4, 5], "max_tokens": 12, "return_token_ids": true}), fields)
}

fn chat(fields: &Value) -> Value {
    let messages = json!([{"role": "user", "content": "hello there, and again hello"}]);
    with(json!({"messages": messages, "max_tokens": 6, "return_token_ids": true}), fields)
}

async fn answer(server: &Server, path: &str, body: &Value) -> Value {
    let reply = server.post(path, body).await;
    assert_eq!(reply.status, 200, "{body}: {reply:?}");
    reply.json()
}

async fn choices(server: &Server, fields: &Value) -> Vec<Value> {
    answer(server, COMPLETIONS, &completion(fields)).await["choices"].as_array().unwrap().clone()
}

async fn check_refused(server: &Server, path: &str, body: &Value, code: &str, param: &str) {
    let reply = server.post(path, body).await;
    assert_eq!(reply.status, 400, "{body}: {reply:?}");
    assert_eq!(reply.error(), (code.into(), Some(param.into())), "{body}: {reply:?}");
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn list<'a>(value: &'a Value, what: &str) -> &'a Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{what}: {value}"))
}

/// Each choice is two tokens; their mean log probability, not the sum, decides, and the longest has the least sum.
#[tokio::test]
async fn the_best_are_told_first_and_all_are_counted() {
    let turn = AtomicUsize::new(0);
    let server = scripted(options(), move |request, script| {
        assert_eq!((request.n, request.logprobs), (4, Some(0)));
        let token = |id, chosen| Token { id, logprobs: Some(Logprobs { chosen, rank: 1, top: vec![] }) };
        let (id, means) = match turn.fetch_add(1, Ordering::SeqCst) % 4 {
            0 => (300, vec![-3.0]),
            1 => (301, vec![-1.5, -0.5, -1.0, -1.0]),
            2 => (302, vec![-2.0, -1.0]),
            _ => (303, vec![-4.0; 3]),
        };
        script.send(Event::Started { cached_tokens: 2 });
        script.send(Event::Tokens(means.into_iter().map(|chosen| token(id, chosen)).collect()));
        script.send(finished(FinishReason::Length));
    })
    .await;
    let reply = answer(&server, COMPLETIONS, &completion(&json!({"n": 2, "best_of": 4}))).await;
    let told = list(&reply["choices"], "choices");
    let shape =
        |choice: &Value| (choice["index"].clone(), ids(&choice["token_ids"]), choice["logprobs"].clone());
    let told: Vec<_> = told.iter().map(shape).collect();
    assert_eq!(told, [(json!(0), vec![301; 4], json!(null)), (json!(1), vec![302; 2], json!(null)),]);
    assert_eq!(reply["usage"]["completion_tokens"], 10);
    let usage = &reply["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]),
        (&json!(3), &json!(2))
    );
}

#[tokio::test]
async fn best_of_is_what_ranking_more_choices_gives() {
    let server = fake().await;
    let drawn = json!({"prompt": [[3, 4, 5], [6, 7]], "temperature": 1.5, "seed": 8});
    let asked = |more: Value| with(drawn.clone(), &more);
    let plain = choices(&server, &asked(json!({"n": 3}))).await;
    assert_eq!(choices(&server, &asked(json!({"n": 3, "best_of": 3}))).await, plain);

    let all = choices(&server, &asked(json!({"n": 6, "logprobs": 0}))).await;
    let best = choices(&server, &asked(json!({"n": 2, "best_of": 6, "logprobs": 0}))).await;
    assert_eq!(best.len(), 4);
    for (prompt, best) in best.chunks(2).enumerate() {
        let mean = |choice: &Value| {
            let scores = list(&choice["logprobs"]["token_logprobs"], "scores");
            scores.iter().map(|score| score.as_f64().unwrap()).sum::<f64>() / scores.len() as f64
        };
        let mut expected = all[prompt * 6..][..6].to_vec();
        expected.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        for (rank, choice) in best.iter().enumerate() {
            expected[rank]["index"] = json!(prompt * 2 + rank);
            assert_eq!(choice, &expected[rank]);
        }
    }
    assert_eq!(server.metric("vllm:num_requests_running").await, 0.0);
}

#[tokio::test]
async fn a_prompt_is_scored_beside_the_answer() {
    let server = fake().await;
    // Some of it the model would have said, and some it would not.
    let said = choices(&server, &json!({"prompt": [3, 4, 5], "max_tokens": 2})).await;
    let prompt = [vec![3, 4, 5], ids(&said[0]["token_ids"]), vec![7]].concat();
    let by_echo = json!({"prompt": prompt, "echo": true, "logprobs": 4, "return_tokens_as_token_ids": true});
    let by_echo = choices(&server, &by_echo).await.remove(0);
    for top in [0, 1, 4] {
        let asked = json!({"prompt": prompt, "prompt_logprobs": top, "n": 2, "temperature": 1, "seed": 1});
        let both = choices(&server, &asked).await;
        assert_eq!(both[0]["prompt_logprobs"], both[1]["prompt_logprobs"]);
        assert_eq!(both[0]["logprobs"], json!(null));
        let scores = list(&both[0]["prompt_logprobs"], "scores");
        assert_eq!((scores.len(), &scores[0]), (6, &json!(null)));
        for (at, score) in scores.iter().enumerate().skip(1) {
            let score = score.as_object().unwrap();
            let (own, found) = score.iter().next().unwrap();
            assert_eq!(own, &prompt[at].to_string());
            assert_eq!(found["logprob"], by_echo["logprobs"]["token_logprobs"][at]);
            assert_eq!(found["decoded_token"], tokenizer().token_text(prompt[at]));
            let rank = found["rank"].as_u64().unwrap() as usize;
            assert_eq!(score.len(), if rank <= top { top } else { top + 1 });
            let echoed = by_echo["logprobs"]["top_logprobs"][at].as_object().unwrap();
            for (place, (name, logprob)) in echoed.iter().take(top).enumerate() {
                let other = &score[name.strip_prefix("token_id:").unwrap()];
                assert_eq!((&other["logprob"], &other["rank"]), (logprob, &json!(place + 1)));
            }
        }
    }
    let reply = server.post(COMPLETIONS, &completion(&json!({"prompt": prompt, "prompt_logprobs": 4}))).await;
    let scores = reply.json()["choices"][0]["prompt_logprobs"].clone();
    let lens = list(&scores, "scores").iter().filter_map(|score| Some(score.as_object()?.len()));
    assert_eq!(reply.body.matches("decoded_token").count(), lens.sum::<usize>(), "an id stands twice");
    // Each list has its own length, whatever the other asks.
    let mixed = json!({"prompt": prompt, "echo": true, "logprobs": 1, "prompt_logprobs": 3, "max_tokens": 0});
    let mixed = choices(&server, &mixed).await.remove(0);
    assert!((3..=4).contains(&mixed["prompt_logprobs"][2].as_object().unwrap().len()));
    assert!(mixed["logprobs"]["top_logprobs"][2].as_object().unwrap().len() <= 2);

    let mixed = json!({"prompt": prompt, "echo": true, "logprobs": 4, "prompt_logprobs": 1, "max_tokens": 0});
    let mixed = choices(&server, &mixed).await.remove(0);
    assert!(mixed["prompt_logprobs"][2].as_object().unwrap().len() <= 2);

    let apart =
        choices(&server, &json!({"prompt": prompt, "logprobs": 0, "prompt_logprobs": 0})).await.remove(0);
    assert_eq!(list(&apart["logprobs"]["tokens"], "the answer's").len(), 12);

    let reply = answer(&server, CHAT, &chat(&json!({"prompt_logprobs": 2, "n": 2}))).await;
    let told = ids(&reply["prompt_token_ids"]);
    let scored = json!({"prompt": told, "prompt_logprobs": 2, "max_tokens": 6});
    assert_eq!(reply["prompt_logprobs"], choices(&server, &scored).await[0]["prompt_logprobs"]);
    assert!(reply["choices"][0].get("prompt_logprobs").is_none());
}

#[tokio::test]
async fn scores_are_bounded_before_they_are_computed() {
    let server = fake().await;
    let long = |fields: Value| completion(&with(json!({"prompt": vec![vec![7; 240]; 4]}), &fields));
    // 4 prompts of 240 tokens, 21 scores each, 64 times.
    let body = long(json!({"prompt_logprobs": 20, "n": 64, "max_tokens": 1}));
    check_refused(&server, COMPLETIONS, &body, "invalid_value", "prompt_logprobs").await;
    let body = long(json!({"logprobs": 20, "echo": true, "n": 1, "best_of": 20, "max_tokens": 1}));
    assert_eq!(server.post(COMPLETIONS, &body).await.status, 200);
    let body = long(json!({"logprobs": 20, "echo": true, "n": 64, "max_tokens": 1}));
    check_refused(&server, COMPLETIONS, &body, "invalid_value", "logprobs").await;
}

#[tokio::test]
async fn a_truncated_prompt_is_its_end() {
    let server = fake().await;
    let text = "hello there, this is a text of some length, and it is cut";
    let whole = ids(&answer(&server, "/tokenize", &json!({"prompt": text})).await["tokens"]);
    for kept in [1, 5, whole.len() - 1, whole.len(), 1000] {
        let end = &whole[whole.len().saturating_sub(kept)..];
        let expected = choices(&server, &json!({"prompt": end})).await;
        for prompt in [json!(text), json!(whole)] {
            let asked = json!({"prompt": prompt, "truncate_prompt_tokens": kept});
            assert_eq!(choices(&server, &asked).await, expected, "{kept} of {}", whole.len());
        }
    }
    let several = json!({"prompt": [[3, 4, 5], [6]], "truncate_prompt_tokens": 2});
    let reply = answer(&server, COMPLETIONS, &completion(&several)).await;
    assert_eq!(reply["usage"]["prompt_tokens"], 3);

    // As much as leaves room for the answer: 252 tokens in all.
    let long: Vec<u32> = (0..600).map(|i| 3 + i * 7 % 500).collect();
    for (max_tokens, room) in [(12, 240), (1, 251), (251, 1)] {
        let asked = json!({"prompt": long, "truncate_prompt_tokens": -1, "max_tokens": max_tokens});
        assert_eq!(ids(&choices(&server, &asked).await[0]["prompt_token_ids"]), long[600 - room..]);
    }
    let asked = completion(&json!({"prompt": long, "truncate_prompt_tokens": -1, "max_tokens": 252}));
    check_refused(&server, COMPLETIONS, &asked, "context_length_exceeded", "prompt").await;
    let asked = completion(&json!({"prompt": long, "truncate_prompt_tokens": 252}));
    check_refused(&server, COMPLETIONS, &asked, "context_length_exceeded", "prompt").await;
    let asked = json!({"prompt": "word ".repeat(4000), "truncate_prompt_tokens": 9});
    assert_eq!(ids(&choices(&server, &asked).await[0]["prompt_token_ids"]).len(), 9);

    let reply = answer(&server, CHAT, &chat(&json!({}))).await;
    let full = ids(&reply["prompt_token_ids"]);
    let cut = answer(&server, CHAT, &chat(&json!({"truncate_prompt_tokens": 4}))).await;
    assert_eq!(ids(&cut["prompt_token_ids"]), full[full.len() - 4..]);
    let same = json!({"prompt": cut["prompt_token_ids"], "max_tokens": 6});
    assert_eq!(cut["choices"][0]["token_ids"], choices(&server, &same).await[0]["token_ids"]);
    let messages = json!([{"role": "user", "content": "word ".repeat(4000)}]);
    let fitted = chat(&json!({"messages": messages, "truncate_prompt_tokens": -1, "max_tokens": 6}));
    assert_eq!(answer(&server, CHAT, &fitted).await["usage"]["prompt_tokens"], 246);
}

#[tokio::test]
async fn only_allowed_tokens_are_drawn() {
    let server = fake().await;
    for sampling in [json!({}), json!({"temperature": 2, "seed": 3})] {
        let asked = |fields: Value| with(sampling.clone(), &fields);
        let only = choices(&server, &asked(json!({"allowed_token_ids": [301]}))).await;
        assert_eq!(ids(&only[0]["token_ids"]), [301; 12]);
        let few = json!({"allowed_token_ids": [301, 7, 1], "min_tokens": 12, "n": 3});
        for choice in choices(&server, &asked(few)).await {
            let drawn = ids(&choice["token_ids"]);
            assert!(drawn.iter().all(|id| [301, 7].contains(id)) && drawn.len() == 12, "{drawn:?}");
        }
        let all: Vec<usize> = (0..VOCAB_SIZE).rev().collect();
        let expected = choices(&server, &asked(json!({}))).await;
        assert_eq!(choices(&server, &asked(json!({"allowed_token_ids": all}))).await, expected);
        let end = choices(&server, &asked(json!({"allowed_token_ids": [1], "logprobs": 0}))).await;
        assert_eq!((&end[0]["finish_reason"], ids(&end[0]["token_ids"])), (&json!("stop"), vec![1]));
    }
    // With a form that the text must have.
    let digits: Vec<u32> = (0..VOCAB_SIZE as u32)
        .filter(|&id| id == 1 || tokenizer().token_bytes(id).iter().all(|byte| b"123".contains(byte)))
        .collect();
    let form = json!({"structured_outputs": {"regex": "[0-9]{5}"}, "allowed_token_ids": digits});
    let text = choices(&server, &form).await[0]["text"].as_str().unwrap().to_owned();
    assert!(text.len() == 5 && text.bytes().all(|byte| b"123".contains(&byte)), "{text}");
    let reply = answer(&server, CHAT, &chat(&json!({"allowed_token_ids": [301]}))).await;
    assert_eq!(ids(&reply["choices"][0]["token_ids"]), [301; 6]);
}

#[tokio::test]
async fn bad_words_are_not_drawn() {
    let server = fake().await;
    let tokenizer = tokenizer();
    let spells = |text: &str| tokenizer.encode(text, false).unwrap();
    let letters: Vec<u32> = ["a", "b", "c", " ", "d", " a"].iter().map(|letter| spells(letter)[0]).collect();
    let few = json!({"allowed_token_ids": letters, "max_tokens": 120});
    for sampling in [json!({}), json!({"temperature": 2, "seed": 3, "n": 2})] {
        let asked = |words: Value| with(with(few.clone(), &sampling), &json!({"bad_words": words}));
        let free = choices(&server, &asked(json!([]))).await;
        // Words that the model would like to say: one token, and several.
        let drawn = ids(&free[0]["token_ids"]);
        let said: Vec<&[u32]> =
            drawn.windows(3).filter(|w| w[0] != letters[3] && w[1] != w[0]).take(3).collect();
        let words: Vec<String> =
            said.iter().map(|word| tokenizer.decode(word, false).trim_start().to_owned()).collect();
        assert!(words.len() == 3 && words.iter().any(|word| spells(word).len() > 1), "{words:?}");
        let banned: Vec<Vec<u32>> =
            words.iter().flat_map(|word| [spells(word), spells(&format!(" {word}"))]).collect();
        let held = choices(&server, &asked(json!(words))).await;
        for choice in &held {
            let drawn = ids(&choice["token_ids"]);
            assert_eq!(drawn.len(), 120);
            let spelt = banned.iter().find(|word| drawn.windows(word.len()).any(|w| w == word.as_slice()));
            assert_eq!(spelt, None, "{words:?} in {drawn:?}");
        }
        let told = banned.iter().any(|word| drawn.windows(word.len()).any(|w| w == word.as_slice()));
        assert!(told, "{words:?} would have been said");
        let never = choices(&server, &asked(json!(["zzz never there"]))).await;
        assert_eq!(never, free);
        // At the beginning of a word and within it.
        let both = [letters[0], letters[5]];
        assert!(both.iter().all(|id| drawn.contains(id)), "{drawn:?}");
        let single = choices(&server, &asked(json!(["a"]))).await;
        let has_none = |choice: &Value| !ids(&choice["token_ids"]).iter().any(|id| both.contains(id));
        assert!(single.iter().all(has_none));
    }
}

#[tokio::test]
async fn what_leaves_nothing_to_draw_is_refused() {
    let server = fake().await;
    let cases = [
        (json!({"allowed_token_ids": [1], "min_tokens": 2}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [300], "logit_bias": {"300": -100}}), "allowed_token_ids"),
        (
            json!({"allowed_token_ids": [300, 9], "bad_words": [], "logit_bias": {"300": -100, "9": -100}}),
            "allowed_token_ids",
        ),
        (json!({"allowed_token_ids": [VOCAB_SIZE - 1]}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [300, 300]}), "allowed_token_ids[1]"),
    ];
    assert!(tokenizer().vocab_size() < VOCAB_SIZE, "the last id is no token");
    for (fields, param) in cases {
        check_refused(&server, COMPLETIONS, &completion(&fields), "invalid_value", param).await;
        check_refused(&server, CHAT, &chat(&fields), "invalid_value", param).await;
    }
    // What is known only once some tokens are drawn ends that request alone.
    let id = tokenizer().encode("a", false).unwrap();
    let aa = tokenizer().encode("aa", false).unwrap();
    assert_eq!((id.len(), aa.len()), (1, 2), "choose letters that are no token together");
    let stuck = completion(&json!({"allowed_token_ids": id, "bad_words": ["aa"]}));
    let plain = json!({});
    let (stuck, fine) = tokio::join!(server.post(COMPLETIONS, &stuck), choices(&server, &plain));
    assert_eq!((stuck.status, fine.len()), (400, 1));
    assert_eq!(stuck.error(), ("invalid_value".to_owned(), None));
    assert_eq!(choices(&server, &plain).await, fine);
}

/// As lm-eval's `local-completions` reads likelihoods: of prompts with their continuations as ids, one token more.
#[tokio::test]
async fn likelihoods_as_evaluations_read_them() {
    let server = Server::fake().await;
    let greedy = choices(&server, &json!({"prompt": [3, 4, 5], "max_tokens": 4})).await;
    let liked = [vec![3, 4, 5], ids(&greedy[0]["token_ids"])].concat();
    let cases: [(Vec<u32>, usize, bool); 3] =
        [(liked, 3, true), (vec![3, 4, 5, 301, 302], 3, false), (vec![9, 10, 11, 12, 13, 14], 1, false)];
    let prompts: Vec<&Vec<u32>> = cases.iter().map(|case| &case.0).collect();
    let asked = json!({"prompt": prompts, "max_tokens": 1, "logprobs": 1, "echo": true, "temperature": 0});
    let all = choices(&server, &asked).await;
    for (index, (prompt, context, is_greedy)) in cases.iter().enumerate() {
        let lists = &all[index]["logprobs"];
        let token = list(&lists["token_logprobs"], "token_logprobs");
        assert_eq!((token.len(), &all[index]["index"]), (prompt.len() + 1, &json!(index)));
        let continuation = *context..token.len() - 1;
        let likelihood: f64 = token[continuation.clone()].iter().map(|score| score.as_f64().unwrap()).sum();
        let best = |at: usize| {
            let top = lists["top_logprobs"][at].as_object().unwrap().values();
            top.map(|score| score.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max)
        };
        assert_eq!(continuation.clone().all(|at| token[at].as_f64().unwrap() == best(at)), *is_greedy);
        // One by one, and from the other list, the same comes out.
        let alone = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "prompt_logprobs": 0});
        let alone = choices(&server, &alone).await;
        let scores =
            list(&alone[0]["prompt_logprobs"], "prompt_logprobs")[*context..].iter().zip(&prompt[*context..]);
        let sum: f64 = scores.map(|(score, id)| score[id.to_string()]["logprob"].as_f64().unwrap()).sum();
        assert_eq!(sum, likelihood);
    }
}
