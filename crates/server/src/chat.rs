//! `POST /v1/chat/completions`.

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use openai::{
    CallChunk, CalledFunction, ChatChoice, ChatChunkChoice, ChatDelta, ChatMessage, ChatRequest,
    FunctionChunk, PromptLogprobs, ToolCall,
};

use crate::answers::{Answers, Format, Header, respond};
use crate::app::App;
use crate::auth::Caller;
use crate::body;
use crate::conversation;
use crate::decode::{Delta, Said};
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
        prompt_logprobs: generation.prompt_logprobs,
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
    prompt_logprobs: Option<usize>,
    prompt_token_ids: Option<Vec<u32>>,
}

impl Chat {
    fn token_ids(&self, delta: &Delta) -> Option<Vec<u32>> {
        let wanted = self.prompt_token_ids.is_some();
        wanted.then(|| delta.tokens.iter().map(|token| token.id).collect())
    }

    fn delta(said: Vec<Said>) -> ChatDelta {
        let mut delta = ChatDelta::default();
        for said in said {
            match said {
                Said::Text(text) => delta.content.get_or_insert_default().push_str(&text),
                Said::Reasoning(text) => delta.reasoning_content.get_or_insert_default().push_str(&text),
                Said::Call { index, opened, arguments } => {
                    let (id, name) = opened.unzip();
                    let r#type = id.is_some().then_some("function");
                    let function = FunctionChunk { name, arguments };
                    delta.tool_calls.push(CallChunk { index, id, r#type, function });
                }
            }
        }
        delta
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
            stop_reason: delta.finish.map(|finish| finish.stop),
            delta: Self::delta(delta.said),
        }
    }

    fn whole(&self, index: usize, choice: Delta) -> ChatChoice {
        let logprobs = self.logprobs.then(|| self.names.chat(&choice.tokens));
        let token_ids = self.token_ids(&choice);
        let nothing_else = !choice.said.iter().any(|said| !matches!(said, Said::Text(_)));
        let ChatDelta { reasoning_content, content, tool_calls, .. } = Self::delta(choice.said);
        ChatChoice {
            index,
            logprobs,
            token_ids,
            message: ChatMessage {
                role: "assistant",
                // Beside a call or reasoning, no text is none; else it is an empty one.
                content: content.or_else(|| nothing_else.then(String::new)),
                refusal: None,
                reasoning_content,
                tool_calls: tool_calls.into_iter().map(whole_call).collect(),
            },
            finish_reason: choice.finish.as_ref().map(|finish| finish.as_str()),
            stop_reason: choice.finish.and_then(|finish| finish.stop),
        }
    }

    fn prompt_token_ids(&self) -> Option<Vec<u32>> {
        self.prompt_token_ids.clone()
    }

    fn prompt_logprobs(&self, choice: &Delta) -> Option<PromptLogprobs> {
        self.prompt_logprobs.map(|top| self.names.prompt(&choice.prompt, top))
    }
}

fn whole_call(call: CallChunk) -> ToolCall {
    let FunctionChunk { name, arguments } = call.function;
    let (id, name) = (call.id.unwrap_or_default(), name.unwrap_or_default());
    ToolCall { id, r#type: "function", function: CalledFunction { name, arguments } }
}
