//! What the engine is asked to do for a conversation, whichever route it came by.

use std::sync::Arc;

use dialect::{Choice, Dialect, Opening};
use engine::grammar::Constraint;
use openai::{ChatRequest, Code, Ending, Error, ToolChoice, Tools};
use text::EncodedChat;

use crate::app::{App, ServedModel};
use crate::auth::Caller;
use crate::constrain;
use crate::errors::internal;
use crate::plan::{Asked, Plan, prompt_len_max};
use crate::speech::Speech;
use crate::tokenize;

/// Tokens at a prompt's end that show whether `<think>` is open.
const TAIL: usize = 8;

/// Encodes the conversation and compiles what its answer is to be. `param`: the field that errors of its length name.
pub(crate) async fn plan(
    app: &App,
    body_len: usize,
    request: ChatRequest,
    caller: Caller,
    param: &'static str,
) -> Result<(ChatRequest, Plan), Error> {
    let (request, prompt) = encode(app, body_len, request).await?;
    let model = app.ready_model()?;
    let dialect = app.dialect();
    let tail = &prompt.ids[prompt.ids.len().saturating_sub(TAIL)..];
    let opening = match request.ending {
        Ending::GenerationPrompt => Opening::of(&model.tokenizer.decode(tail, false)),
        Ending::Closed => Opening::Thought, // the text goes on where the conversation ended
        Ending::Open => Opening::within(request.messages.last().and_then(|last| last.content.as_deref())),
    };
    let constraint = constraint(app, dialect, opening, &request).await?;
    let tools = if request.tools.choice == ToolChoice::None { Vec::new() } else { tools(&request.tools) };
    let separate = app.options().separate_reasoning;
    let speech = Speech::new(dialect, opening, tools, separate, request.include_reasoning, &model.tokenizer);
    let asked = Asked {
        param,
        prompts: vec![prompt.ids],
        drawn: prompt.answers,
        best_of: request.generation.n,
        logprobs: request.logprobs,
        constraint,
        speech: Some(Arc::new(speech)),
        echo: false,
        may_cut: false,
        caller,
    };
    let plan = Plan::new(model, &request.generation, asked)?;
    Ok((request, plan))
}

/// The ids of the conversation alone.
pub(crate) async fn ids(app: &App, body_len: usize, request: ChatRequest) -> Result<Vec<u32>, Error> {
    Ok(encode(app, body_len, request).await?.1.ids)
}

async fn encode(
    app: &App,
    body_len: usize,
    request: ChatRequest,
) -> Result<(ChatRequest, EncodedChat), Error> {
    let app = app.clone();
    let work = move || {
        let model: &ServedModel = app.model().ok_or_else(|| internal("the model is gone"))?;
        let ChatRequest { generation, messages, tools, ending, chat_template_kwargs, .. } = &request;
        let prompt = tokenize::encode_chat(
            model,
            app.dialect(),
            messages,
            tools,
            *ending,
            chat_template_kwargs,
            prompt_len_max(model, generation).saturating_sub(1),
        )?;
        Ok((request, prompt))
    };
    tokenize::off_thread(body_len, work).await
}

async fn constraint(
    app: &App,
    dialect: Dialect,
    opening: Opening,
    request: &ChatRequest,
) -> Result<Option<Constraint>, Error> {
    let ChatRequest { generation, tools: asked, .. } = request;
    let answer = generation.constrained.as_ref();
    let (param, text) = match answer {
        Some(constrained) => (constrained.param.as_str(), Some(constrain::piece(constrained))),
        None => ("tools", None),
    };
    check_tools(app, asked)?;
    let piece = dialect.grammar(opening, &tools(asked), &choice(&asked.choice), asked.parallel, text);
    let piece = piece.map_err(|why| {
        Error::at(Code::InvalidSchema, "tools", format!("`tools` cannot be enforced: {why}. Change it, or let `tool_choice` be \"auto\" and `strict` false."))
    })?;
    let Some(piece) = piece else { return Ok(None) };
    let must_end = answer.is_some() || matches!(asked.choice, ToolChoice::Required | ToolChoice::Named(_));
    if must_end {
        constrain::check(generation, param)?;
    }
    match constrain::compile(app, piece, param.to_owned()).await {
        Ok(constraint) => Ok(Some(constraint)),
        // Nobody asked for more than the model's own calls.
        Err(error) if !must_end && !asked.list.iter().any(|tool| tool.strict) => {
            tracing::warn!(%error, "calls are read, but not held to the schemas of their tools");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Here, where it is known which tool is to blame.
fn check_tools(app: &App, tools: &Tools) -> Result<(), Error> {
    for (i, tool) in tools.list.iter().enumerate() {
        let lenient = !tool.strict && tools.choice == ToolChoice::Auto;
        let Some(schema) = &tool.parameters else { continue };
        let checked = grammar::check_schema(schema, lenient, &app.options().grammar_limits());
        checked
            .map_err(|refused| constrain::to_error(refused, &format!("tools[{i}].function.parameters")))?;
    }
    Ok(())
}

fn tools(tools: &Tools) -> Vec<dialect::Tool> {
    let tool = |tool: &openai::Tool| dialect::Tool {
        name: tool.name.clone(),
        parameters: tool.parameters.clone(),
        strict: tool.strict,
    };
    tools.list.iter().map(tool).collect()
}

fn choice(choice: &ToolChoice) -> Choice {
    match choice {
        ToolChoice::None => Choice::None,
        ToolChoice::Auto => Choice::Auto,
        ToolChoice::Required => Choice::Required,
        ToolChoice::Named(name) => Choice::Named(name.clone()),
    }
}
