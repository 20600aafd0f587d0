//! `POST /v1/chat/completions`.

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use openai::{
    CallChunk, CalledFunction, ChatChoice, ChatChunkChoice, ChatDelta, ChatMessage, ChatRequest,
    FunctionChunk, ToolCall,
};

use crate::answers::{Answers, Format, Header, respond};
use crate::app::App;
use crate::auth::Caller;
use crate::body;
use crate::conversation;
use crate::decode::{CallDelta, Delta};
use crate::errors::ApiError;
use crate::logprobs::TokenNames;

pub(crate) async fn answer(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    app.ready_model()?;
    let body = body::read(&app, request).await?;
    let model = app.ready_model()?;
    let parsed = ChatRequest::parse(&body, model.vocab_size)?;
    app.note_ignored(&parsed.ignored);
    let name = app.served_name(parsed.request.generation.model.as_deref())?;
    let (request, plan) =
        conversation::plan(&app, body.len(), parsed.request, caller, Chat::PROMPT_PARAM).await?;
    let generation = &request.generation;
    let format = Chat {
        names: TokenNames {
            tokenizer: model.tokenizer.clone(),
            as_ids: generation.return_tokens_as_token_ids,
        },
        logprobs: request.logprobs.is_some(),
        include_reasoning: request.include_reasoning,
        prompt_token_ids: generation.return_token_ids.then(|| plan.prompts[0].to_vec()),
    };
    let header = Header::new::<Chat>(name, model.fingerprint.clone());
    let answers = Answers::submit(&app, &*model.engine, plan)?;
    respond(&app, answers, header, format, generation.stream).await
}

/// The chat format of pieces and answers.
struct Chat {
    names: TokenNames,
    logprobs: bool,
    include_reasoning: bool,
    prompt_token_ids: Option<Vec<u32>>,
}

impl Chat {
    fn token_ids(&self, delta: &Delta) -> Option<Vec<u32>> {
        let wanted = self.prompt_token_ids.is_some();
        wanted.then(|| delta.tokens.iter().map(|token| token.id).collect())
    }

    fn reasoning(&self, reasoning: String) -> Option<String> {
        Some(reasoning).filter(|text| self.include_reasoning && !text.is_empty())
    }
}

impl Format for Chat {
    type Choice = ChatChoice;
    type Chunk = ChatChunkChoice;

    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";
    const ID_PREFIX: &'static str = "chatcmpl";
    const SERVICE_TIER: Option<Option<&'static str>> = Some(None);
    const PROMPT_PARAM: &'static str = "messages";

    fn opening(&self, n_choices: usize) -> Vec<ChatChunkChoice> {
        let delta =
            || ChatDelta { role: Some("assistant"), content: Some(String::new()), ..ChatDelta::default() };
        let role = |index| ChatChunkChoice {
            index,
            delta: delta(),
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        };
        (0..n_choices).map(role).collect()
    }

    fn chunk(&self, index: usize, _first: bool, delta: Delta) -> ChatChunkChoice {
        let scored = self.logprobs && !delta.tokens.is_empty();
        ChatChunkChoice {
            index,
            logprobs: scored.then(|| self.names.chat(&delta.tokens)),
            token_ids: self.token_ids(&delta),
            finish_reason: delta.finish.as_ref().map(|finish| finish.as_str()),
            delta: ChatDelta {
                role: None,
                reasoning_content: self.reasoning(delta.reasoning),
                content: Some(delta.text).filter(|text| !text.is_empty()),
                tool_calls: delta.calls.into_iter().map(call_chunk).collect(),
            },
            stop_reason: delta.finish.map(|finish| finish.stop),
        }
    }

    fn whole(&self, index: usize, choice: Delta) -> ChatChoice {
        // Beside a call or reasoning, no text is none; else it is an empty one.
        let is_none = choice.text.is_empty() && !(choice.calls.is_empty() && choice.reasoning.is_empty());
        ChatChoice {
            index,
            logprobs: self.logprobs.then(|| self.names.chat(&choice.tokens)),
            token_ids: self.token_ids(&choice),
            message: ChatMessage {
                role: "assistant",
                content: Some(choice.text).filter(|_| !is_none),
                refusal: None,
                reasoning_content: self.reasoning(choice.reasoning),
                tool_calls: choice.calls.into_iter().map(whole_call).collect(),
            },
            finish_reason: choice.finish.as_ref().map(|finish| finish.as_str()),
            stop_reason: choice.finish.and_then(|finish| finish.stop),
        }
    }

    fn prompt_token_ids(&self) -> Option<Vec<u32>> {
        self.prompt_token_ids.clone()
    }
}

fn call_chunk(call: CallDelta) -> CallChunk {
    let (id, name) = call.opened.unzip();
    CallChunk {
        index: call.index,
        r#type: id.is_some().then_some("function"),
        id,
        function: FunctionChunk { name, arguments: call.arguments },
    }
}

fn whole_call(call: CallDelta) -> ToolCall {
    let (id, name) = call.opened.unwrap_or_default();
    ToolCall { id, r#type: "function", function: CalledFunction { name, arguments: call.arguments } }
}
