//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use engine::grammar::Constraint;
use openai::{CompletionChoice, CompletionRequest, Error, Generation, Prompt, PromptLogprobs};

use crate::answers::{Answers, Format, Header, respond};
use crate::app::{App, ServedModel};
use crate::auth::Caller;
use crate::body;
use crate::constrain;
use crate::decode::Delta;
use crate::errors::{ApiError, internal};
use crate::logprobs::TokenNames;
use crate::plan::{Asked, Plan, prompt_len_max};

pub(crate) async fn answer(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    app.ready_model()?;
    let body = body::read(&app, request).await?;
    let model = app.ready_model()?;
    let parsed = CompletionRequest::parse(&body, model.vocab_size)?;
    app.note_ignored(&parsed.ignored);
    let request = parsed.request;
    let CompletionRequest { generation, best_of, logprobs, echo, .. } = request;
    let name = app.served_name(generation.model.as_deref())?;
    let prompts = {
        let (app, prompts) = (app.clone(), request.prompts);
        let (special, len_max) = (request.add_special_tokens, prompt_len_max(model, &generation));
        crate::tokenize::off_thread(body.len(), move || {
            let model = app.model().ok_or_else(|| internal("the model is gone"))?;
            encode(model, prompts, special, len_max)
        })
        .await?
    };
    let param = Completion::PROMPT_PARAM;
    let (drawn, may_cut) = (Vec::new(), request.max_tokens_defaulted);
    let constraint = constraint(&app, &generation).await?;
    let asked =
        Asked { param, prompts, drawn, best_of, logprobs, constraint, speech: None, echo, may_cut, caller };
    let plan = Plan::new(model, &generation, asked)?;
    let format = Completion {
        names: TokenNames {
            tokenizer: model.tokenizer.clone(),
            as_ids: generation.return_tokens_as_token_ids,
        },
        logprobs,
        echo,
        prompt_logprobs: generation.prompt_logprobs,
        return_token_ids: generation.return_token_ids,
        prompts: plan.prompts.clone(),
        n: plan.n,
    };
    let header = Header::new::<Completion>(name, model.fingerprint.clone());
    let answers = Answers::submit(&app, &*model.engine, plan)?;
    respond(&app, answers, header, format, generation.stream).await
}

/// The whole text, from its first token on.
async fn constraint(app: &App, generation: &Generation) -> Result<Option<Constraint>, Error> {
    let Some(constrained) = &generation.constrained else { return Ok(None) };
    constrain::check(generation, &constrained.param)?;
    constrain::compile(app, constrain::piece(constrained), constrained.param.clone()).await.map(Some)
}

fn encode(
    model: &ServedModel,
    prompts: Vec<Prompt>,
    add_special_tokens: bool,
    len_max: usize,
) -> Result<Vec<Vec<u32>>, Error> {
    let ids = |prompt| match prompt {
        Prompt::Ids(ids) => Ok(ids),
        Prompt::Text(text) => match model.tokenizer.tokens_min(text.len()) {
            at_least if at_least > len_max => {
                Err(Error::prompt_length(Completion::PROMPT_PARAM, model.context_len, at_least))
            }
            _ => crate::tokenize::encode_text(model, &text, add_special_tokens),
        },
    };
    prompts.into_iter().map(ids).collect()
}

/// The completion format: pieces and answers look alike.
struct Completion {
    names: TokenNames,
    /// Beside each token.
    logprobs: Option<usize>,
    echo: bool,
    prompt_logprobs: Option<usize>,
    return_token_ids: bool,
    prompts: Vec<Arc<Vec<u32>>>,
    /// Choices told of each.
    n: usize,
}

impl Format for Completion {
    type Choice = CompletionChoice;
    type Chunk = CompletionChoice;

    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";
    const ID_PREFIX: &'static str = "cmpl";
    const SERVICE_TIER: Option<Option<&'static str>> = None;
    const PROMPT_PARAM: &'static str = "prompt";

    fn opening(&self, _n_choices: usize) -> Vec<CompletionChoice> {
        Vec::new()
    }

    fn chunk(&self, index: usize, first: bool, delta: Delta) -> CompletionChoice {
        let scored = !(delta.prompt.is_empty() && delta.tokens.is_empty());
        let mut choice = self.whole(index, delta);
        choice.logprobs = choice.logprobs.filter(|_| scored);
        choice.prompt_token_ids = choice.prompt_token_ids.filter(|_| first);
        choice
    }

    fn whole(&self, index: usize, choice: Delta) -> CompletionChoice {
        let echoed = if self.echo { choice.prompt.as_slice() } else { &[] };
        let tokens = || echoed.iter().chain(&choice.tokens);
        let ids = || choice.tokens.iter().map(|token| token.id).collect();
        let prompt = || self.prompts[index / self.n].to_vec();
        CompletionChoice {
            index,
            logprobs: self.logprobs.map(|top| self.names.completion(tokens(), top)),
            prompt_logprobs: self.prompt_logprobs.map(|top| self.names.prompt(&choice.prompt, top)),
            prompt_token_ids: self.return_token_ids.then(prompt),
            token_ids: self.return_token_ids.then(ids),
            text: choice.text(),
            finish_reason: choice.finish.as_ref().map(|finish| finish.as_str()),
            stop_reason: choice.finish.and_then(|finish| finish.stop),
        }
    }

    fn prompt_token_ids(&self) -> Option<Vec<u32>> {
        None
    }

    fn prompt_logprobs(&self, _choice: &Delta) -> Option<PromptLogprobs> {
        None
    }
}
