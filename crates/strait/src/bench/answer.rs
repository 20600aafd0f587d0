//! One answer as its client hears it: what came, and when.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// From the request to the first token.
    pub first: Duration,
    /// One for each token after those of the first event: the time since the event before, shared among the
    /// tokens of an event. A server may hold a token back until its text is whole.
    pub gaps: Vec<Duration>,
    /// From the request to the end.
    pub whole: Duration,
    pub prompt_tokens: usize,
    /// Of the prompt, reused; `None`: the server does not tell.
    pub cached_tokens: Option<usize>,
    pub tokens: usize,
    /// `None`: the server does not tell.
    pub ids: Option<Vec<u32>>,
    pub text: String,
}

/// An answer under way.
#[derive(Debug)]
pub(crate) struct Hearing {
    sent: Instant,
    first: Option<Instant>,
    last: Instant,
    done: Option<Instant>,
    gaps: Vec<Duration>,
    usage: Option<Usage>,
    /// Tokens heard, as far as events tell.
    tokens: usize,
    ids: Option<Vec<u32>>,
    text: String,
}

/// What is read of an event of a stream, and of a whole answer.
#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    text: Option<String>,
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<usize>,
}

impl Hearing {
    pub(crate) fn new(sent: Instant) -> Self {
        Self {
            sent,
            first: None,
            last: sent,
            done: None,
            gaps: Vec::new(),
            usage: None,
            tokens: 0,
            ids: None,
            text: String::new(),
        }
    }

    /// The data of one event, which came at `now`.
    pub(crate) fn event(&mut self, data: &[u8], now: Instant) -> Result<(), String> {
        if data == b"[DONE]" {
            self.done = Some(now);
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data)
            .map_err(|error| format!("what came is no completion in OpenAI's format: {error}"))?;
        if let Some(error) = chunk.error {
            return Err(described(&error));
        }
        self.usage = chunk.usage.or(self.usage);
        chunk.choices.into_iter().for_each(|choice| self.choice(choice, now));
        Ok(())
    }

    /// An answer that comes as one JSON.
    pub(crate) fn body(&mut self, json: &[u8], now: Instant) -> Result<(), String> {
        self.event(json, now)?;
        self.done = Some(now);
        Ok(())
    }

    fn choice(&mut self, choice: Choice, now: Instant) {
        let text = choice.text.unwrap_or_default();
        // Without ids, a piece of text is taken for a token.
        let tokens = choice.token_ids.as_ref().map_or(usize::from(!text.is_empty()), Vec::len);
        if let Some(ids) = choice.token_ids {
            self.ids.get_or_insert_default().extend(ids);
        }
        self.text.push_str(&text);
        if tokens == 0 {
            return;
        }
        self.tokens += tokens;
        if self.first.is_none() {
            self.first = Some(now);
        } else {
            let gap = (now - self.last) / u32::try_from(tokens).unwrap_or(u32::MAX);
            self.gaps.extend(std::iter::repeat_n(gap, tokens));
        }
        self.last = now;
    }

    /// The answer, if it was one.
    pub(crate) fn finish(self) -> Result<Answer, String> {
        let done = self.done.ok_or("the stream ended before [DONE]")?;
        let usage =
            self.usage.ok_or("the answer has no usage; this client needs stream_options.include_usage")?;
        if usage.completion_tokens == 0 {
            return Err("the answer has no token".into());
        }
        Ok(Answer {
            first: self.first.unwrap_or(done) - self.sent,
            gaps: self.gaps,
            whole: done - self.sent,
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens),
            tokens: usage.completion_tokens,
            ids: self.ids,
            text: self.text,
        })
    }
}

/// `server_overloaded: 4 requests are waiting already`, of an error object as servers write it.
pub(crate) fn described(error: &Value) -> String {
    let code = match &error["code"] {
        Value::String(code) => format!("{code}: "),
        _ => String::new(),
    };
    match error["message"].as_str().or(error.as_str()) {
        Some(message) => format!("{code}{message}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hears events, one every 10 ms.
    fn heard(events: &[&str]) -> Result<Answer, String> {
        let sent = Instant::now();
        let mut hearing = Hearing::new(sent);
        for (i, event) in (1..).zip(events) {
            hearing.event(event.as_bytes(), sent + Duration::from_millis(10 * i))?;
        }
        hearing.finish()
    }

    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,
        "prompt_tokens_details":{"cached_tokens":8}}}"#;

    #[test]
    fn tokens_and_their_times() {
        let answer = heard(&[
            r#"{"choices":[{"index":0,"text":"a","token_ids":[5]}],"usage":null}"#,
            r#"{"choices":[{"index":0,"text":"\u00e4\"b","token_ids":[6,7]}],"usage":null}"#,
            r#"{"choices":[{"index":0,"text":"","token_ids":[8],"finish_reason":"length"}],"usage":null}"#,
            USAGE,
            "[DONE]",
        ]);
        let ms = Duration::from_millis;
        let expected = Answer {
            first: ms(10),
            gaps: vec![ms(5), ms(5), ms(10)],
            whole: ms(50),
            prompt_tokens: 9,
            cached_tokens: Some(8),
            tokens: 4,
            ids: Some(vec![5, 6, 7, 8]),
            text: "aä\"b".into(),
        };
        assert_eq!(answer, Ok(expected));
    }

    #[test]
    fn servers_that_tell_less() {
        let answer = heard(&[
            r#"{"choices":[{"text":""}]}"#,
            r#"{"choices":[{"text":"a"}]}"#,
            r#"{"choices":[{"text":"b"}]}"#,
            r#"{"choices":[{"text":""}],"usage":{"prompt_tokens":9,"completion_tokens":2}}"#,
            "[DONE]",
        ]);
        let answer = answer.unwrap();
        assert_eq!((answer.first, answer.gaps.len()), (Duration::from_millis(20), 1));
        assert_eq!((answer.tokens, answer.cached_tokens, answer.ids), (2, None, None));
    }

    #[test]
    fn what_is_no_answer_says_why() {
        let token = r#"{"choices":[{"text":"a"}]}"#;
        for (events, expected) in [
            (&[token, USAGE][..], "before [DONE]"),
            (&[token, "[DONE]"], "no usage"),
            (&[r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":0}}"#, "[DONE]"], "no token"),
            (
                &[token, r#"{"error":{"code":"engine_dead","message":"it died"}}"#, "[DONE]"],
                "engine_dead: it died",
            ),
            (&[r#"{"error":{"code":500,"message":"it died"}}"#], "it died"),
            (&[r#"{"error":"it died"}"#], "it died"),
            (&["<html>"], "no completion"),
        ] {
            let error = heard(events).unwrap_err();
            assert!(error.contains(expected), "{events:?}: {error}");
        }
    }
}
