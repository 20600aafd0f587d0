//! `POST /v1/chat/completions`.

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use engine::grammar::Constraint;
use openai::{
    ChatChoice, ChatChunkChoice, ChatDelta, ChatMessage, ChatRequest, Error, Generation, PromptLogprobs,
};

use crate::answers::{Answers, Format, Header, respond};
use crate::app::App;
use crate::auth::Caller;
use crate::body;
use crate::constrain;
use crate::decode::Delta;
use crate::errors::{ApiError, internal};
use crate::logprobs::TokenNames;
use crate::plan::{Asked, Plan, prompt_len_max};
use crate::tokenize;

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
    let request = parsed.request;
    let name = app.served_name(request.generation.model.as_deref())?;
    let (request, prompt) = {
        let app = app.clone();
        tokenize::off_thread(body.len(), move || {
            let model = app.model().ok_or_else(|| internal("the model is gone"))?;
            let prompt = tokenize::encode_chat(
                model,
                &request.messages,
                &request.tools,
                request.add_generation_prompt,
                &request.chat_template_kwargs,
                prompt_len_max(model, &request.generation).saturating_sub(1),
            )?;
            Ok((request, prompt))
        })
        .await?
    };
    let generation = &request.generation;
    let asked = Asked {
        param: Chat::PROMPT_PARAM,
        prompts: vec![prompt.ids],
        drawn: prompt.answers,
        best_of: generation.n,
        logprobs: request.logprobs,
        constraint: constraint(&app, generation).await?,
        echo: false,
        may_cut: false,
        caller,
    };
    let plan = Plan::new(model, generation, asked)?;
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

async fn constraint(app: &App, generation: &Generation) -> Result<Option<Constraint>, Error> {
    let Some(constrained) = &generation.constrained else { return Ok(None) };
    constrain::check(generation, &constrained.param)?;
    constrain::compile(app, constrain::piece(constrained), constrained.param.clone()).await.map(Some)
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
        let role = |index| ChatChunkChoice {
            index,
            delta: ChatDelta { role: Some("assistant"), content: Some(String::new()) },
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        };
        (0..n_choices).map(role).collect()
    }

    fn chunk(&self, index: usize, _first: bool, delta: Delta) -> ChatChunkChoice {
        let scored = self.logprobs && !delta.tokens.is_empty();
        let token_ids = self.token_ids(&delta);
        ChatChunkChoice {
            index,
            logprobs: scored.then(|| self.names.chat(&delta.tokens)),
            token_ids,
            finish_reason: delta.finish.as_ref().map(|finish| finish.as_str()),
            delta: ChatDelta { role: None, content: delta.finish.is_none().then_some(delta.text) },
            stop_reason: delta.finish.map(|finish| finish.stop),
        }
    }

    fn whole(&self, index: usize, choice: Delta) -> ChatChoice {
        ChatChoice {
            index,
            logprobs: self.logprobs.then(|| self.names.chat(&choice.tokens)),
            token_ids: self.token_ids(&choice),
            message: ChatMessage { role: "assistant", content: Some(choice.text), refusal: None },
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
