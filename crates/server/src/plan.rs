//! What the engine is asked to do for one API request.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use engine::grammar::Constraint;
use engine::request::{Request, Sampling};
use openai::{Error, Generation};

use crate::app::ServedModel;
use crate::auth::Caller;
use crate::decode::DecodeOptions;
use crate::speech::Speech;

/// A `logit_bias` that bans a token.
const BAN: f32 = -100.0;
/// Below it a temperature is greedy: dividing logits by it would overflow.
const TEMPERATURE_MIN: f32 = 1e-5;

/// Prompts as ids, and how to go on from each. Lengths are checked.
pub(crate) struct Plan {
    pub(crate) prompts: Vec<Arc<Vec<u32>>>,
    /// Choices a prompt.
    pub(crate) n: usize,
    /// As the metrics count it: the longest answer that was allowed.
    pub(crate) max_tokens: usize,
    budgets: Vec<usize>,
    template: Request,
    decode: DecodeOptions,
    echo: bool,
}

/// What chat and completions say each in their own way.
pub(crate) struct Asked {
    /// `messages` or `prompt`, for errors.
    pub(crate) param: &'static str,
    pub(crate) prompts: Vec<Vec<u32>>,
    /// Tokens of the prompt that the model drew itself, where that is known and the prompt is one.
    pub(crate) drawn: Vec<Range<usize>>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) constraint: Option<Constraint>,
    pub(crate) speech: Option<Arc<Speech>>,
    pub(crate) echo: bool,
    /// `max_tokens` may be cut to what is left of the context.
    pub(crate) may_cut: bool,
    pub(crate) caller: Caller,
}

impl Plan {
    pub(crate) fn new(model: &ServedModel, generation: &Generation, asked: Asked) -> Result<Self, Error> {
        let budget = |prompt: &Vec<u32>| budget(model.context_len, generation, &asked, prompt.len());
        let budgets = asked.prompts.iter().map(budget).collect::<Result<Vec<_>, _>>()?;
        let eos_ids = if generation.ignore_eos { Vec::new() } else { model.eos_ids.clone() };
        let mut stop_ids = eos_ids.clone();
        stop_ids.extend(&generation.stop_token_ids);
        stop_ids.sort_unstable();
        stop_ids.dedup();
        let decode = DecodeOptions {
            tokenizer: model.tokenizer.clone(),
            skip_special_tokens: generation.skip_special_tokens,
            stop: generation.stop.clone(),
            eos_ids,
            stop_token_ids: generation.stop_token_ids.clone(),
            include_stop: generation.include_stop_str_in_output,
            min_tokens: generation.min_tokens,
            echo: None,
            speech: asked.speech.clone(),
        };
        check_prompts(model, &asked)?;
        let template = Request {
            drawn: asked.drawn,
            n: generation.n,
            min_new_tokens: generation.min_tokens,
            stop_ids,
            sampling: sampling(model, generation),
            constraint: asked.constraint,
            logprobs: asked.logprobs,
            prompt_logprobs: asked.logprobs.filter(|_| asked.echo),
            priority: generation.priority,
            cache_salt: asked.caller.cache_salt(generation.cache_salt.as_deref()),
            ..Request::default()
        };
        check_drawable(model, &template)?;
        Ok(Self {
            n: generation.n,
            max_tokens: budgets.iter().copied().max().unwrap_or(0),
            budgets,
            template,
            decode,
            echo: asked.echo,
            prompts: asked.prompts.into_iter().map(Arc::new).collect(),
        })
    }

    /// A request for each prompt, and how its choices are decoded.
    pub(crate) fn requests(&self) -> impl Iterator<Item = (Request, DecodeOptions)> + '_ {
        self.prompts.iter().zip(&self.budgets).map(|(prompt, &max_new_tokens)| {
            let request = Request { prompt: prompt.to_vec(), max_new_tokens, ..self.template.clone() };
            let echo = self.echo.then(|| Arc::clone(prompt));
            (request, DecodeOptions { echo, ..self.decode.clone() })
        })
    }
}

/// Tokens that may be generated after a prompt of `prompt_len`.
fn budget(
    context_len: usize,
    generation: &Generation,
    asked: &Asked,
    prompt_len: usize,
) -> Result<usize, Error> {
    if prompt_len == 0 {
        return Err(Error::value(
            asked.param,
            format!("`{}` has no tokens; it needs at least one.", asked.param),
        ));
    }
    let requested = generation.max_tokens;
    let too_long =
        |answer_len: usize| Error::context_length(asked.param, context_len, prompt_len, answer_len);
    // A prompt that is only scored may fill the context.
    if prompt_len + requested.map_or(1, |most| most.min(1)) > context_len {
        return Err(too_long(requested.unwrap_or(1)));
    }
    let left = context_len - prompt_len;
    let budget = match requested {
        Some(most) if most <= left => most,
        Some(_) if asked.may_cut => left,
        None => left,
        Some(most) => return Err(too_long(most)),
    };
    if generation.min_tokens > budget {
        return Err(Error::value(
            "min_tokens",
            format!(
                "`min_tokens` is {}, but only {budget} tokens are left of the context. Lower it \
                 or shorten the prompt.",
                generation.min_tokens
            ),
        ));
    }
    Ok(budget)
}

/// Several prompts enter the queue together: more than it holds would hear "try again" for ever.
fn check_prompts(model: &ServedModel, asked: &Asked) -> Result<(), Error> {
    let (param, n) = (asked.param, asked.prompts.len());
    let n_tokens: usize = asked.prompts.iter().map(Vec::len).sum();
    let (has, option, holds) = match n {
        1 => return Ok(()), // one that is too long for the queue waits alone
        _ if n > model.max_waiting => (format!("{n} prompts"), "--max-queue", model.max_waiting),
        _ if n_tokens > model.max_waiting_tokens => {
            (format!("{n_tokens} tokens in {n} prompts"), "--max-queue-tokens", model.max_waiting_tokens)
        }
        _ => return Ok(()),
    };
    let message =
        format!("`{param}` has {has}; this server's queue ({option}) holds {holds}. Send fewer at once.");
    Err(Error::value(param, message))
}

/// A first token must be left to draw.
fn check_drawable(model: &ServedModel, request: &Request) -> Result<(), Error> {
    let drawable = model.tokenizer.vocab_size().min(model.vocab_size);
    let biases = &request.sampling.logit_bias;
    let delayed = if request.min_new_tokens > 0 { request.stop_ids.as_slice() } else { &[] };
    // Nearly always: the lists are short and the vocabulary is large.
    if biases.len() + delayed.len() < drawable {
        return Ok(());
    }
    let banned = biases.iter().filter(|(_, bias)| *bias <= BAN).map(|(id, _)| id);
    let excluded: HashSet<&u32> = banned.chain(delayed).collect();
    if excluded.iter().filter(|&&&id| (id as usize) < drawable).count() < drawable {
        return Ok(());
    }
    Err(Error::value(
        "logit_bias",
        "`logit_bias` leaves no token to begin the answer with (before `min_tokens` none that ends \
         it counts). Ban fewer tokens.",
    ))
}

fn sampling(model: &ServedModel, generation: &Generation) -> Sampling {
    let defaults = &model.defaults;
    let temperature = generation.temperature.or(defaults.temperature).unwrap_or(1.0);
    let top_k = generation.top_k.or(defaults.top_k).unwrap_or(0);
    Sampling {
        temperature: if temperature < TEMPERATURE_MIN { 0.0 } else { temperature },
        top_p: generation.top_p.or(defaults.top_p).unwrap_or(1.0),
        // More than the vocabulary has is no limit.
        top_k: if top_k >= model.vocab_size { 0 } else { top_k },
        min_p: generation.min_p,
        presence_penalty: generation.presence_penalty,
        frequency_penalty: generation.frequency_penalty,
        repetition_penalty: generation.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
        logit_bias: generation.logit_bias.clone(),
        seed: generation.seed.map(i64::cast_unsigned),
    }
}
